"""`janus trace`: decodes a small batch and writes who did what when, as a Chrome trace."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Annotated

import msgspec

from janus_moe.cli import cluster_file
from janus_moe.cli.cluster_file import ClusterFile
from janus_moe.cli.flags import Command, flag
from janus_moe.cli.outputs import write_text
from janus_moe.cluster.hosts.gathering import gather_hosts, why
from janus_moe.cluster.service import Service
from janus_moe.cluster.tracing import InstanceTrace, require_room, trace_decode
from janus_moe.config import ClusterConfig, EngineConfig
from janus_moe.profiling.chrome_trace import chrome_trace
from janus_moe.startup_view import StartupView


class TraceOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is decoded, and where the trace goes."""

    steps: Annotated[int, flag("decode steps in the trace", at_least=1)] = 3
    batch: Annotated[int, flag("requests, over all instances", at_least=1)] = 8
    prompt_tokens: Annotated[int, flag("of each request", at_least=1)] = 16
    out: Annotated[Path, flag("file to write", writes="file")] = Path("trace.json")


def run(options: TraceOptions, engine: EngineConfig, _: ClusterFile, cluster: ClusterConfig) -> int:
    """Starts a service, traces it, stops it."""
    out = options.out
    load = (options.batch, options.prompt_tokens, options.steps)
    with StartupView() as view:
        traces = asyncio.run(_traces(engine, cluster, view, load))
    trace = chrome_trace(traces, options.steps)
    write_text(out, json.dumps(trace))
    events = sum(event["ph"] == "X" for event in trace["traceEvents"])
    view.say("trace", f"{out}: {events} events; open it at https://ui.perfetto.dev")
    return 0


async def _traces(
    config: EngineConfig, cluster: ClusterConfig, view: StartupView, load: tuple[int, int, int]
) -> list[InstanceTrace]:
    gathered = await gather_hosts(config, cluster, lambda note: view.say("hosts", note))
    try:
        service = Service.prepare(config, gathered)
        require_room(service.engine, *load)
        view.plan(service.plan)
    except BaseException as error:
        if gathered is not None:
            await gathered.dismiss(why(error))
        raise
    ready = asyncio.Event()
    running = asyncio.create_task(service.run(ready, view.progress))
    tracing = asyncio.create_task(_when_ready(service, ready, load))
    try:
        await asyncio.wait({running, tracing}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
        return await tracing
    finally:
        for task in (tracing, running):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def _when_ready(
    service: Service, ready: asyncio.Event, load: tuple[int, int, int]
) -> list[InstanceTrace]:
    await ready.wait()
    return await trace_decode(service.engine, service.tracer, *load)


COMMAND = Command(
    options=(TraceOptions, EngineConfig, ClusterFile, ClusterConfig),
    run=run,
    complete=cluster_file.complete,
)

"""`janus trace`: decodes a small batch and writes who did what when, as a Chrome trace."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
from pathlib import Path

from janus_moe.cli.cluster_file import read_cluster_file, with_shape
from janus_moe.cli.console import StartupView
from janus_moe.cli.flags import add_flags, build, split
from janus_moe.cluster.hosts.gathering import gather_hosts, why
from janus_moe.cluster.service import Service
from janus_moe.cluster.tracing import InstanceTrace, trace_decode
from janus_moe.config import ClusterConfig, EngineConfig
from janus_moe.profiling.chrome_trace import chrome_trace

OWN = ("model_argument", "cluster", "steps", "batch", "prompt_tokens", "out")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to decode, where to write, and the engine's own flags."""
    parser.add_argument(
        "model_argument", metavar="MODEL", nargs="?", help="same as --model; default: bundled"
    )
    parser.add_argument("--steps", type=int, default=3, help="decode steps in the trace")
    parser.add_argument("--batch", type=int, default=8, help="requests, over all instances")
    parser.add_argument("--prompt-tokens", type=int, default=16, help="of each request")
    parser.add_argument("--out", type=Path, default=Path("trace.json"), help="file to write")
    add_flags(parser, EngineConfig)
    parser.add_argument("--cluster", metavar="FILE.yaml", help="hosts, listen and secret-file")
    add_flags(parser, ClusterConfig)


def run(arguments: argparse.Namespace) -> int:
    """Starts a service, traces it, stops it."""
    values = dict(vars(arguments))
    model, cluster, steps, batch, prompt_tokens, out = (values.pop(name) for name in OWN)
    if model is not None:
        values["model"] = model
    merged = with_shape({**(read_cluster_file(cluster) if cluster else {}), **values})
    engine, hosts = split(merged, [EngineConfig, ClusterConfig])
    view = StartupView()
    traces = asyncio.run(
        _traces(
            build(EngineConfig, engine),
            build(ClusterConfig, hosts),
            view,
            (batch, prompt_tokens, steps),
        )
    )
    trace = chrome_trace(traces, steps)
    out.write_text(json.dumps(trace))
    events = sum(event["ph"] == "X" for event in trace["traceEvents"])
    view.say("trace", f"{out}: {events} events; open it at https://ui.perfetto.dev")
    return 0


async def _traces(
    config: EngineConfig, cluster: ClusterConfig, view: StartupView, load: tuple[int, int, int]
) -> list[InstanceTrace]:
    gathered = await gather_hosts(config, cluster, lambda note: view.say("hosts", note))
    try:
        service = Service.prepare(config, gathered)
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

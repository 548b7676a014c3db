"""Starts a service, decodes a small batch in it and returns what every instance did.

It does not know flags; `trace` reads them without loading what stands here.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from janus_moe.cluster.hosts.gathering import gather_hosts, why
from janus_moe.cluster.service import Service
from janus_moe.cluster.tracing import InstanceTrace, require_room, trace_decode
from janus_moe.config import ClusterConfig, EngineConfig
from janus_moe.profiling.chrome_trace import chrome_trace
from janus_moe.startup_view import StartupView


def trace_of(
    engine: EngineConfig, cluster: ClusterConfig, load: tuple[int, int, int]
) -> dict[str, Any]:
    """Returns a Chrome trace.

    load: requests, prompt tokens of each, and steps
    """
    with StartupView() as view:
        traces = asyncio.run(_traces(engine, cluster, view, load))
    return chrome_trace(traces, load[2])


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

"""Runs a service with its HTTP server, until a signal or a lost worker ends it.

It does not know flags; `serve` reads them without loading what stands here.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys

from janus_moe.cli.console import report_throughput
from janus_moe.cluster.hosts.gathering import gather_hosts, why
from janus_moe.cluster.service import Service
from janus_moe.config import ClusterConfig, EngineConfig, ServerConfig
from janus_moe.engine.text.chat import load_chat_template
from janus_moe.errors import JanusError
from janus_moe.server.run import HttpServer, bind, run_server
from janus_moe.startup_view import StartupView

LAST_WORDS_S = 1.0


def serve(engine: EngineConfig, server: ServerConfig, cluster: ClusterConfig) -> int:
    """Serves until told to stop; 0 after a clean shutdown, 1 when the service was lost."""
    with StartupView() as view:
        status = asyncio.run(_run(engine, server, cluster, view))
        if status == 0:
            view.say("stop", "all workers have ended")
        return status


async def _run(
    config: EngineConfig, server: ServerConfig, cluster: ClusterConfig, view: StartupView
) -> int:
    """The port comes first, nothing is loaded for one that is taken or for a template that cannot
    be read; then the other hosts, because
    what they have decides what they are given."""
    if server.chat_template is not None:
        load_chat_template(server.chat_template)
    listener = bind(server.host, server.port)
    gathered = await gather_hosts(config, cluster, lambda note: view.say("hosts", note))
    try:
        view.say("resolve", "...")
        service = Service.prepare(config, gathered)
        view.plan(service.plan)
    except BaseException as error:
        if gathered is not None:
            await gathered.dismiss(why(error))
        raise
    return await _serve(service, server, listener, view)


async def _serve(
    service: Service, config: ServerConfig, listener: socket.socket, view: StartupView
) -> int:
    """The HTTP server is up from the start and answers 503 until the workers are ready."""
    server = HttpServer(service.engine, config, listener, lambda text: view.say("stop", text))
    ready = asyncio.Event()
    workers = asyncio.create_task(service.run(ready, view.progress))
    http = asyncio.create_task(run_server(server))
    view.say("http", f"{server.url} (answers 503 until ready)")
    logs = asyncio.create_task(_log(service, server.url, ready, view))
    try:
        await asyncio.wait({workers, http}, return_when=asyncio.FIRST_COMPLETED)
        if http.done():
            http.result()
            return 0
        workers.result()
        return 1
    except JanusError as error:
        if workers.done():
            await service.engine.drain(LAST_WORDS_S)  # open streams tell their clients why
            await asyncio.sleep(0.1)
        view.close()
        print(f"janus serve: {error}", file=sys.stderr)
        return 1
    finally:
        view.close()
        for task in (logs, http, workers):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, JanusError):
                await task


async def _log(service: Service, url: str, ready: asyncio.Event, view: StartupView) -> None:
    await ready.wait()
    view.close()
    view.say("workers", ", ".join(f"{name} pid {pid}" for name, pid in service.pids.items()))
    view.say("ready", f"[green]{url}/v1 takes requests[/]; Ctrl-C stops it")
    await report_throughput(service.engine)

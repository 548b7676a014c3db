"""`janus serve`: settings in, a running service out, until a signal or a lost worker ends it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys

from janus_moe.cli.console import StartupView, report_throughput
from janus_moe.cli.flags import add_flags, build, read_yaml, split
from janus_moe.config import EngineConfig, ServerConfig
from janus_moe.control.service import Service
from janus_moe.errors import JanusError
from janus_moe.server.run import run_server

LAST_WORDS_S = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command; MODEL may be given by position, by flag or in the file."""
    parser.add_argument(
        "model_argument", metavar="MODEL", nargs="?", help="same as --model; default: bundled"
    )
    parser.add_argument("--config", metavar="FILE.yaml", help="settings by name; flags override")
    add_flags(parser, EngineConfig)
    add_flags(parser, ServerConfig)


def run(arguments: argparse.Namespace) -> int:
    """Serves until told to stop; 0 after a clean shutdown, 1 when the service was lost."""
    engine_config, server_config = settings(arguments)
    view = StartupView()
    with view.stage("resolve"):
        service = Service.prepare(engine_config)
    view.plan(service.plan)
    return asyncio.run(_serve(service, server_config, view))


def settings(arguments: argparse.Namespace) -> tuple[EngineConfig, ServerConfig]:
    """Defaults, then the file, then the flags."""
    values = dict(vars(arguments))
    path, model = values.pop("config", None), values.pop("model_argument", None)
    merged = {**(read_yaml(path) if path else {}), **values}
    if model is not None:
        merged["model"] = model
    if key := os.environ.get("JANUS_API_KEY"):
        merged.setdefault("api_key", key)
    engine_values, server_values = split(merged, [EngineConfig, ServerConfig])
    return build(EngineConfig, engine_values), build(ServerConfig, server_values)


async def _serve(service: Service, config: ServerConfig, view: StartupView) -> int:
    """The HTTP server is up from the start and answers 503 until the workers are ready."""
    ready = asyncio.Event()
    workers = asyncio.create_task(service.run(ready, view.progress))
    http = asyncio.create_task(run_server(service.engine, config, view.listening))
    logs = asyncio.create_task(_log(service, ready, view))
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
        print(f"janus serve: {error}", file=sys.stderr)
        return 1
    finally:
        for task in (logs, http, workers):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, JanusError):
                await task


async def _log(service: Service, ready: asyncio.Event, view: StartupView) -> None:
    await ready.wait()
    view.ready(service)
    await report_throughput(service.engine)

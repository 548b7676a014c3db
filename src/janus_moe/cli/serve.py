"""`janus serve`: settings in, a running service out, until a signal or a lost worker ends it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys

from janus_moe.cli.cluster_file import read_cluster_file, with_shape
from janus_moe.cli.console import StartupView, report_throughput
from janus_moe.cli.flags import add_flags, build, read_yaml, split
from janus_moe.cluster.hosts.gathering import gather_hosts, why
from janus_moe.cluster.service import Service
from janus_moe.config import ClusterConfig, EngineConfig, ServerConfig
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
    parser.add_argument("--cluster", metavar="FILE.yaml", help="hosts, listen and secret-file")
    add_flags(parser, ClusterConfig)


def run(arguments: argparse.Namespace) -> int:
    """Serves until told to stop; 0 after a clean shutdown, 1 when the service was lost."""
    configs = settings(arguments)
    return asyncio.run(_run(*configs, StartupView()))


def settings(arguments: argparse.Namespace) -> tuple[EngineConfig, ServerConfig, ClusterConfig]:
    """Defaults, then the files, then the flags."""
    values = dict(vars(arguments))
    path, model = values.pop("config", None), values.pop("model_argument", None)
    cluster = values.pop("cluster", None)
    merged = {
        **(read_yaml(path) if path else {}),
        **(read_cluster_file(cluster) if cluster else {}),
        **values,
    }
    if model is not None:
        merged["model"] = model
    if key := os.environ.get("JANUS_API_KEY"):
        merged.setdefault("api_key", key)
    engine_values, server_values, cluster_values = split(
        with_shape(merged), [EngineConfig, ServerConfig, ClusterConfig]
    )
    return (
        build(EngineConfig, engine_values),
        build(ServerConfig, server_values),
        build(ClusterConfig, cluster_values),
    )


async def _run(
    config: EngineConfig, server: ServerConfig, cluster: ClusterConfig, view: StartupView
) -> int:
    """Other hosts come first: what they have decides what they are given."""
    gathered = await gather_hosts(config, cluster, lambda note: view.say("hosts", note))
    try:
        with view.stage("resolve"):
            service = Service.prepare(config, gathered)
        view.plan(service.plan)
    except BaseException as error:
        if gathered is not None:
            await gathered.dismiss(why(error))
        raise
    return await _serve(service, server, view)


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

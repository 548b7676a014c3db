"""`janus worker --join ADDRESS:PORT`: makes this machine a host of a service."""

from __future__ import annotations

import asyncio
from typing import Annotated

import msgspec
from rich.console import Console

from janus_moe.cli.flags import Command, flag
from janus_moe.cluster.hosts.addresses import Address, address_towards, require_own
from janus_moe.cluster.hosts.agent import AgentSettings, run_agent
from janus_moe.cluster.hosts.secret import read_secret, require_curve
from janus_moe.config import LONGEST_S


class WorkerOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where to join, as which host, and how to get in."""

    join: Annotated[str, flag("what `janus serve` prints", metavar="ADDRESS:PORT")]
    name: Annotated[str, flag("what --hosts of `janus serve` calls this one", metavar="HOST")]
    secret_file: Annotated[str, flag("the secret that all hosts share", metavar="FILE")]
    bind: Annotated[
        str | None,
        flag("where workers listen; default: towards the engine", metavar="ADDRESS"),
    ] = None
    join_timeout: Annotated[
        float, flag("seconds to try", metavar="SECONDS", above=0, at_most=LONGEST_S)
    ] = 60.0
    heartbeat_timeout: Annotated[
        float,
        flag(
            "seconds of silence after which the engine is gone",
            metavar="SECONDS",
            at_least=0.5,
            at_most=LONGEST_S,
        ),
    ] = 5.0


def run(options: WorkerOptions) -> int:
    """Returns when the service ends; errors say why it was not by request."""
    require_curve()
    engine = Address.parse(options.join, "--join")
    bind = options.bind or address_towards(engine, "--join")
    settings = AgentSettings(
        engine=engine,
        name=options.name,
        secret=read_secret(options.secret_file, "--secret-file"),
        bind_host=require_own(bind, "--bind"),
        join_timeout_s=options.join_timeout,
        heartbeat_timeout_s=options.heartbeat_timeout,
    )
    console = Console(stderr=True, highlight=False)
    asyncio.run(run_agent(settings, lambda text: console.print(text, soft_wrap=True)))
    return 0


COMMAND = Command(options=(WorkerOptions,), run=run)

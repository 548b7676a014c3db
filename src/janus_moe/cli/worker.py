"""`janus worker --join ADDRESS:PORT`: makes this machine a host of a service."""

from __future__ import annotations

import argparse
import asyncio

from rich.console import Console

from janus_moe.cluster.hosts.addresses import Address, address_towards, require_own
from janus_moe.cluster.hosts.agent import AgentSettings, run_agent
from janus_moe.cluster.hosts.secret import read_secret, require_curve
from janus_moe.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to join, as whom, and how to get in."""
    parser.add_argument(
        "--join", metavar="ADDRESS:PORT", required=True, help="what `janus serve` prints"
    )
    parser.add_argument(
        "--name", metavar="HOST", required=True, help="what --hosts of `janus serve` calls this one"
    )
    parser.add_argument(
        "--secret-file", metavar="FILE", required=True, help="the secret that all hosts share"
    )
    parser.add_argument(
        "--bind", metavar="ADDRESS", help="where workers listen; default: towards the engine"
    )
    parser.add_argument(
        "--join-timeout", metavar="SECONDS", type=float, default=60.0, help="(default: 60)"
    )
    parser.add_argument(
        "--heartbeat-timeout",
        metavar="SECONDS",
        type=float,
        default=5.0,
        help="silence after which the engine is gone (default: 5)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Returns when the service ends; errors say why it was not by request."""
    require_curve()
    engine = Address.parse(arguments.join, "--join")
    if not arguments.join_timeout > 0:
        raise ConfigError(f"--join-timeout must be above 0, got {arguments.join_timeout}")
    if not arguments.heartbeat_timeout >= 0.5:
        raise ConfigError(
            f"--heartbeat-timeout must be at least 0.5 seconds, got {arguments.heartbeat_timeout}"
        )
    secret = read_secret(arguments.secret_file, "--secret-file")
    bind = arguments.bind or address_towards(engine, "--join")
    settings = AgentSettings(
        engine=engine,
        name=arguments.name,
        secret=secret,
        bind_host=require_own(bind, "--bind"),
        join_timeout_s=arguments.join_timeout,
        heartbeat_timeout_s=arguments.heartbeat_timeout,
    )
    console = Console(stderr=True, highlight=False)
    asyncio.run(run_agent(settings, lambda text: console.print(text, soft_wrap=True)))
    return 0

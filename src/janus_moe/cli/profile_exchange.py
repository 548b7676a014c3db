"""`janus profile exchange`: measures what messages between instances cost."""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from janus_moe.errors import ConfigError
from janus_moe.planner.latency.link_profile import LinkProfile, write_link_profile
from janus_moe.profiling.exchange_run import orders_of, run_orders
from janus_moe.profiling.exchange_times import link_profile
from janus_moe.profiling.run import machine
from janus_moe.spec import PoolShape
from janus_moe.transport import ExchangeLayout

LIMIT_S = 600.0
UNITS = (("latency_s", 1e6, "us"), ("message_s", 1e6, "us"), ("s_per_byte", 1e9, "ns"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where instances live, what to send, where to write."""
    parser.add_argument(
        "--attention-nodes", type=int, nargs="+", default=[0, 0], help="node of each instance"
    )
    parser.add_argument(
        "--expert-nodes", type=int, nargs="+", default=[1, 1], help="node of each instance"
    )
    parser.add_argument("--hidden-size", type=int, default=1024)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument(
        "--batches", type=int, nargs="+", default=[4, 16, 64, 256], help="tokens in all"
    )
    parser.add_argument("--budget", type=float, default=2.0, help="seconds per batch size")
    parser.add_argument("--node", type=int, help="measure with other hosts: the node of this one")
    parser.add_argument("--meeting", type=Path, help="with --node: a folder that all hosts share")
    parser.add_argument("--bind", default="127.0.0.1", help="with --node: address of this host")
    parser.add_argument("--json", type=Path, default=Path("links.json"), help="file to write")


def run(arguments: argparse.Namespace) -> int:
    """Measures, and on the host of attention instance 0 writes and prints what it found."""
    if (arguments.node is None) != (arguments.meeting is None):
        raise ConfigError("--node and --meeting go together: each host starts its own instances")
    layout = ExchangeLayout(
        shape=PoolShape(
            attention=len(arguments.attention_nodes), expert=len(arguments.expert_nodes)
        ),
        hidden_size=arguments.hidden_size,
        dtype=arguments.dtype,
        max_tokens=-(-max(arguments.batches) // len(arguments.attention_nodes)),
        attention_nodes=tuple(arguments.attention_nodes),
        expert_nodes=tuple(arguments.expert_nodes),
    )
    console, start = Console(), time.perf_counter()
    with _meeting(arguments.meeting) as meeting:
        settings = {"batches": tuple(arguments.batches), "budget_s": arguments.budget}
        orders = orders_of(layout, arguments.node, meeting, arguments.bind, **settings)
        if not orders:
            raise ConfigError(f"no instance lives on node {arguments.node}")
        times = run_orders([(order, subprocess.Popen) for order in orders], LIMIT_S)
    if times is None:
        console.print("done; the host of attention instance 0 has the result")
        return 0
    profile = link_profile(layout, times, machine())
    write_link_profile(arguments.json, profile)
    console.print(_table(profile))
    if burst := profile.links.get("inter_burst_bytes", 0.0):
        console.print(f"between nodes, the first {burst / 1000:.0f} kB pass at once")
    console.print(
        f"{arguments.json} written after {time.perf_counter() - start:.0f} s; error of batch sizes "
        f"left out of the fit: median {profile.median_error:.0%}, p90 {profile.p90_error:.0%}"
    )
    return 0


@contextlib.contextmanager
def _meeting(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        if not folder.is_dir() or any(folder.iterdir()):
            raise ConfigError(f"--meeting {folder} must be an empty folder that all hosts share")
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="janus-") as made:
        yield Path(made)


def _table(profile: LinkProfile) -> Table:
    table = Table(title="what an exchange costs", title_justify="left")
    for name in ("where", *(f"{name.rpartition('_')[0]} ({unit})" for name, _, unit in UNITS)):
        table.add_column(name, justify="right")
    for where in ("intra", "inter", "shared"):
        values = (profile.links.get(f"{where}_{name}") for name, _, _ in UNITS)
        shown = [
            "" if value is None else f"{factor * value:.3g}"
            for value, (_, factor, _) in zip(values, UNITS, strict=True)
        ]
        table.add_row(where, *shown)
    return table

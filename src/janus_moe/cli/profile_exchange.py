"""`janus profile exchange`: measures what messages between instances cost."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from rich.table import Table

from janus_moe.cli.flags import Command, flag
from janus_moe.cli.outputs import ReportConsole
from janus_moe.errors import ConfigError
from janus_moe.planner.latency.link_profile import LinkProfile, write_link_profile
from janus_moe.spec import Membership

LIMIT_S = 600.0
LARGEST_ROW, LARGEST_BATCH = 2**20, 2**20
UNITS = (("latency_s", 1e6, "us"), ("message_s", 1e6, "us"), ("s_per_byte", 1e9, "ns"))


class ProfileExchangeOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where instances live, what they send, and where the figures go."""

    attention_nodes: Annotated[tuple[int, ...], flag("node of each instance", at_least=0)] = (0, 0)
    expert_nodes: Annotated[tuple[int, ...], flag("node of each instance", at_least=0)] = (1, 1)
    hidden_size: Annotated[int, flag("numbers in a row", at_least=1, at_most=LARGEST_ROW)] = 1024
    dtype: Annotated[Literal["float32", "bfloat16"], flag("of the rows")] = "float32"
    batches: Annotated[
        tuple[int, ...], flag("tokens in all", at_least=1, at_most=LARGEST_BATCH)
    ] = (4, 16, 64, 256)
    budget: Annotated[float, flag("seconds per batch size", above=0, at_most=LIMIT_S)] = 2.0
    node: Annotated[
        int | None, flag("measure with other hosts: the node of this one", at_least=0)
    ] = None
    meeting: Annotated[
        Path | None, flag("with --node: a folder that all hosts share", metavar="FOLDER")
    ] = None
    bind: Annotated[str, flag("with --node: address of this host", metavar="ADDRESS")] = "127.0.0.1"
    json: Annotated[Path, flag("file to write", writes="file")] = Path("links.json")

    def __post_init__(self) -> None:
        if (self.node is None) != (self.meeting is None):
            raise ConfigError("--node and --meeting go together: each host starts its instances")


def run(options: ProfileExchangeOptions) -> int:
    """Measures, and on the host of attention instance 0 writes and prints what it found."""
    from janus_moe.profiling.exchange_run import orders_of, run_orders
    from janus_moe.profiling.exchange_times import link_profile
    from janus_moe.profiling.run import machine
    from janus_moe.transport import ExchangeLayout

    layout = ExchangeLayout(
        membership=Membership.on_hosts(options.attention_nodes, options.expert_nodes),
        hidden_size=options.hidden_size,
        dtype=options.dtype,
        max_tokens=-(-max(options.batches) // len(options.attention_nodes)),
    )
    console, start = ReportConsole(), time.perf_counter()
    with _meeting(options.meeting) as meeting:
        settings = {"batches": options.batches, "budget_s": options.budget}
        orders = orders_of(layout, options.node, meeting, options.bind, **settings)
        if not orders:
            raise ConfigError(f"no instance lives on node {options.node}")
        times = run_orders([(order, subprocess.Popen) for order in orders], LIMIT_S)
    if times is None:
        console.print("done; the host of attention instance 0 has the result")
        return 0
    profile = link_profile(layout, times, machine())
    write_link_profile(options.json, profile)
    console.print(_table(profile))
    if burst := profile.links.get("inter_burst_bytes", 0.0):
        console.print(f"between nodes, the first {burst / 1000:.0f} kB pass at once")
    console.print(
        f"{options.json} written after {time.perf_counter() - start:.0f} s; error of batch sizes "
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


COMMAND = Command(options=(ProfileExchangeOptions,), run=run)

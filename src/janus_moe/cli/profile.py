"""`janus profile`: measures a model on this machine and writes what the latency oracle reads."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from rich.table import Table

from janus_moe.cli.flags import Command, flag
from janus_moe.cli.outputs import ReportConsole
from janus_moe.config import EngineConfig
from janus_moe.planner.latency.profile import Profile, write_profile


class ProfileOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is measured, and where the figures go."""

    model: Annotated[str, flag("local folder, Hugging Face id, or 'bundled'", positional=True)] = (
        "bundled"
    )
    tokenizer: Annotated[str | None, flag("folder or id, if not the model's own")] = None
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"], flag("weights, activations, KV cache")
    ] = "auto"
    device: Annotated[Literal["cpu", "cuda"], flag("what is measured")] = "cpu"
    threads: Annotated[int, flag("per instance; 0: cores by the pool", at_least=0)] = 0
    max_batch: Annotated[int, flag("sequences of one attention instance", at_least=1)] = 64
    max_instances: Annotated[int, flag("of one pool on this machine", at_least=1)] = 2
    max_model_len: Annotated[int | None, flag("longest context; default: the model's")] = None
    json: Annotated[Path, flag("file to write", writes="file")] = Path("profile.json")


def run(options: ProfileOptions) -> int:
    """Measures, writes and prints a summary."""
    from janus_moe.profiling import plan_profile, run_profile

    console, start = ReportConsole(), time.perf_counter()
    config = EngineConfig(
        model=options.model,
        tokenizer=options.tokenizer,
        dtype=options.dtype,
        device=options.device,
        threads=options.threads,
        max_model_len=options.max_model_len,
    )
    plan = plan_profile(config, max_batch=options.max_batch, max_instances=options.max_instances)
    profile = asyncio.run(run_profile(plan, console.print))
    write_profile(options.json, profile)
    console.print(_table(profile))
    console.print(f"{options.json} written after {time.perf_counter() - start:.0f} s")
    return 0


def _table(profile: Profile) -> Table:
    table = Table(title=f"{profile.model.name}, microseconds", title_justify="left")
    for name in ("instances", "attention layer", "lm head", "gate", "MoE layer, all experts"):
        table.add_column(name, justify="right")
    for count, attention in profile.attention.items():
        expert = profile.expert[count]
        table.add_row(
            str(count),
            _first_to_last(attention.layer.values),
            _first_to_last(attention.head.values),
            _first_to_last(expert.gate.values),
            _first_to_last(expert.experts.values),
        )
    return table


def _first_to_last(values: tuple[float, ...]) -> str:
    """Of the smallest size and of the largest."""
    return f"{1e6 * values[0]:.0f} to {1e6 * values[-1]:.0f}"


COMMAND = Command(options=(ProfileOptions,), run=run)

"""`janus profile`: measures a model on this machine and writes what the latency oracle reads."""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from janus_moe.config import EngineConfig
from janus_moe.planner.latency.profile import Profile, write_profile
from janus_moe.profiling import plan_profile, run_profile


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to measure, and where to write it."""
    parser.add_argument("model", nargs="?", default="bundled", help="folder, id or 'bundled'")
    parser.add_argument("--tokenizer", help="folder or id, if not the model's own")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="per instance; 0: cores by the pool")
    parser.add_argument("--max-batch", type=int, default=64, help="of one attention instance")
    parser.add_argument(
        "--max-instances", type=int, default=2, help="of one pool on this machine (default: 2)"
    )
    parser.add_argument("--max-model-len", type=int, help="longest context; default: the model's")
    parser.add_argument("--json", type=Path, default=Path("profile.json"), help="file to write")


def run(arguments: argparse.Namespace) -> int:
    """Measures, writes and prints a summary."""
    console, start = Console(), time.perf_counter()
    config = EngineConfig(
        model=arguments.model,
        tokenizer=arguments.tokenizer,
        dtype=arguments.dtype,
        device=arguments.device,
        threads=arguments.threads,
        max_model_len=arguments.max_model_len,
    )
    plan = plan_profile(
        config, max_batch=arguments.max_batch, max_instances=arguments.max_instances
    )
    profile = asyncio.run(run_profile(plan, console.print))
    write_profile(arguments.json, profile)
    console.print(_table(profile))
    console.print(f"{arguments.json} written after {time.perf_counter() - start:.0f} s")
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

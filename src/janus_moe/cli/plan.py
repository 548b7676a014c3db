"""`janus plan`: how many GPUs of each pool, or why not, from facts about model and devices."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import get_args

from rich.console import Console

from janus_moe.cli import plan_report
from janus_moe.cli.prices import priced
from janus_moe.config import parse_human_int
from janus_moe.errors import ConfigError
from janus_moe.planner.latency import Oracle, device_names, model_names
from janus_moe.planner.latency.precision import Format
from janus_moe.planner.search.activation import ActivationSource, lognormal, uniform
from janus_moe.planner.search.paper import Calibration, calibrated, note
from janus_moe.planner.search.problem import (
    Batching,
    Concurrency,
    MonolithicStyle,
    PoolStyle,
    Prefill,
    Problem,
    Rate,
    RequestLengths,
    Saturate,
    ServiceDemand,
)
from janus_moe.planner.search.recommend import recommend
from janus_moe.planner.search.sampled import from_trace
from janus_moe.policy.routing_trace import RoutingTrace

DEFAULT_GPUS = 1024
MIN_WIDTH = 150
"""Columns that the tables need, also in a pipe."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Names as in AIConfigurator where it has them."""
    asked = parser.add_argument_group("what is asked")
    asked.add_argument(
        "--model",
        required=True,
        help=f"{', '.join(model_names())}, a Hugging Face id of these, or a folder",
    )
    asked.add_argument("--system", default="h200_sxm", help=", ".join(device_names()))
    asked.add_argument("--expert-system", help="devices of the expert pool, if others")
    asked.add_argument("--isl", type=_count, default=1024, help="input tokens (default: 1024)")
    asked.add_argument("--osl", type=_count, default=512, help="output tokens (default: 512)")
    asked.add_argument("--tpot", type=float, default=50.0, help="ms per token (default: 50)")
    asked.add_argument("--ttft", type=float, help="mean ms to the first token, queue included")
    load = asked.add_mutually_exclusive_group()
    load.add_argument("--target-request-rate", type=float, metavar="R", help="requests per second")
    load.add_argument("--target-concurrency", type=float, metavar="C", help="requests at once")
    asked.add_argument("--total-gpus", type=_count, metavar="N", help="at most so many GPUs")
    asked.add_argument("--objective", choices=("gpus", "price"), default="gpus")
    asked.add_argument(
        "--gpu-price", metavar="H100=2.5,H20=1.2", help="dollars per hour, for --objective price"
    )
    detail = parser.add_argument_group("details")
    formats = get_args(Format)
    detail.add_argument("--weights", choices=formats, help="default: as published")
    detail.add_argument("--expert-weights", choices=formats)
    detail.add_argument("--kv-cache-dtype", choices=formats, default="bfloat16")
    detail.add_argument("--slots", type=_count, metavar="C", help="experts per instance and layer")
    detail.add_argument("--trace", type=Path, help="routing that `--record-routing` wrote")
    detail.add_argument(
        "--routing-spread",
        type=float,
        default=0.0,
        metavar="S",
        help="without a trace: spread of the experts' log popularity (default: 0, uniform)",
    )
    detail.add_argument(
        "--prefill",
        choices=get_args(Prefill),
        default="included",
        help="excluded: other devices compute the prompts (default: included)",
    )
    detail.add_argument(
        "--max-num-batched-tokens",
        type=_count,
        default=2048,
        help="prompt tokens in a step of an attention instance (default: 2048)",
    )
    detail.add_argument(
        "--calibration",
        choices=get_args(Calibration),
        default="honest",
        help="paper: adds constants that reproduce figures of arXiv 2512.13525",
    )
    output = parser.add_argument_group("output")
    output.add_argument("--top-n", type=_count, default=5, help="shapes to list (default: 5)")
    output.add_argument("--strict-sla", action="store_true", help="fail where nothing meets it all")
    output.add_argument(
        "--explain", "--detail", action="store_true", help="where time and memory go"
    )
    output.add_argument("--save-dir", type=Path, help="writes settings, figures and plots there")
    output.add_argument("--json", type=Path, help="writes all figures there")


def run(arguments: argparse.Namespace) -> int:
    """0: there is a plan. 1: there is none, and `--strict-sla` asked for one."""
    problem = problem_of(arguments)
    style = PoolStyle(slots=arguments.slots)
    plan = recommend(problem, style, MonolithicStyle(), arguments.top_n)
    report = plan_report.PlanReport(
        plan=plan,
        style=style,
        model=arguments.model,
        note=note(arguments.calibration),
    )
    console = Console(highlight=False, soft_wrap=True, width=max(Console().width, MIN_WIDTH))
    report.show(console, arguments.explain)
    if arguments.json:
        _write(arguments.json, json.dumps(report.as_json(), indent=1) + "\n")
    if arguments.save_dir:
        for path in report.save(arguments.save_dir):
            console.print(f"wrote {path}")
    if arguments.strict_sla and plan.best is None:
        return 1
    return 0


def problem_of(arguments: argparse.Namespace) -> Problem:
    """The question; raises ConfigError for what cannot be asked."""
    oracle = Oracle.build(
        arguments.model,
        arguments.system,
        arguments.expert_system,
        weights=arguments.weights,
        expert_weights=arguments.expert_weights,
        kv_format=arguments.kv_cache_dtype,
    )
    if arguments.isl < 1:
        raise ConfigError(f"--isl must be 1 or more tokens, got {arguments.isl}")
    if arguments.gpu_price is not None:
        oracle = priced(oracle, arguments.gpu_price)
    workload = RequestLengths(isl=arguments.isl, osl=arguments.osl)
    positions = oracle.model.max_position
    if positions and workload.isl + workload.osl > positions:
        raise ConfigError(
            f"--isl {arguments.isl} and --osl {arguments.osl} are "
            f"{arguments.isl + arguments.osl} tokens, but {oracle.model.title} has {positions} "
            "positions; ask for less"
        )
    ttft_s = None if arguments.ttft is None else arguments.ttft / 1e3
    if ttft_s is not None and not 0 < ttft_s < float("inf"):
        raise ConfigError(f"--ttft must be above 0 ms, got {arguments.ttft:g}")
    demand = _demand(arguments, workload)
    if isinstance(demand, Saturate) and arguments.total_gpus is None:
        raise ConfigError(
            "say how much is asked for: --target-request-rate R, --target-concurrency C, or "
            "--total-gpus N for as much as N GPUs can serve"
        )
    gpus = DEFAULT_GPUS if arguments.total_gpus is None else arguments.total_gpus
    return Problem(
        oracle=calibrated(oracle, arguments.calibration),
        activation=_activation(arguments, oracle),
        workload=workload,
        demand=demand,
        tpot_s=arguments.tpot / 1e3,
        max_gpus=gpus,
        objective=arguments.objective,
        batching=Batching(max_prompt_tokens=arguments.max_num_batched_tokens),
        prefill=arguments.prefill,
        ttft_s=ttft_s,
    )


def _demand(arguments: argparse.Namespace, workload: RequestLengths) -> ServiceDemand:
    if arguments.target_request_rate is not None:
        return Rate(arguments.target_request_rate * workload.osl)
    if arguments.target_concurrency is not None:
        return Concurrency(arguments.target_concurrency)
    return Saturate()


def _activation(arguments: argparse.Namespace, oracle: Oracle) -> ActivationSource:
    model = oracle.model
    if arguments.trace is not None:
        return from_trace(RoutingTrace.load(arguments.trace), f"routing of {arguments.trace.name}")
    if arguments.routing_spread:
        return lognormal(model.num_experts, model.top_k, arguments.routing_spread)
    return uniform(model.num_experts, model.top_k)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None


def _count(text: str) -> int:
    try:
        return parse_human_int(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None

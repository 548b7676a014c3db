"""`janus simulate trace TRACE`: requests through deployments that scale, without a GPU."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import get_args

from rich.console import Console

from janus_moe.cli.simulate_report import Comparison
from janus_moe.errors import ConfigError
from janus_moe.planner.latency import Oracle, device_names
from janus_moe.planner.simulation.chrome import write_chrome_trace
from janus_moe.planner.simulation.deployment import Deployments
from janus_moe.planner.simulation.generators import ArrivalProcess, Lengths, generate
from janus_moe.planner.simulation.max_activated import SampledMaxActivated
from janus_moe.planner.simulation.planned import planning_problem
from janus_moe.planner.simulation.policies import KNOWN, PolicyContext, named_policy
from janus_moe.planner.simulation.pools import CompiledPool
from janus_moe.planner.simulation.reference import PolicyPool
from janus_moe.planner.simulation.report import LatencyObjective, make_report
from janus_moe.planner.simulation.scaling import Loading
from janus_moe.planner.simulation.simulate import SimulationSettings, simulate
from janus_moe.planner.simulation.state import BatchLimits
from janus_moe.planner.simulation.traces import TraceFormat, load_trace
from janus_moe.planner.simulation.workload import RequestTrace
from janus_moe.policy.estimate import BatchSampler
from janus_moe.policy.routing_trace import RoutingTrace
from janus_moe.policy.synthetic import SyntheticKind, SyntheticRouter

SYNTHETIC = "synthetic:"
LOGGED_STEPS = 20_000
MIN_WIDTH = 110
"""Columns that the table needs, also in a pipe."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What arrives, what serves it, who decides."""
    names = ", ".join(SYNTHETIC + name for name in get_args(ArrivalProcess))
    parser.add_argument("trace", help=f"a trace file, or one of {names}")
    parser.add_argument("--format", choices=get_args(TraceFormat), help="default: by first line")
    parser.add_argument("--start", type=float, default=0.0, help="first second of the trace")
    parser.add_argument("--duration", type=float, help="seconds (synthetic: default 3600)")
    parser.add_argument("--speed", type=float, default=1.0, help="times the trace's own rate")
    parser.add_argument("--rate", type=float, default=10.0, help="synthetic: mean requests/s")
    parser.add_argument("--input-len", type=float, default=16.0, help="synthetic: mean tokens")
    parser.add_argument("--output-len", type=float, default=256.0, help="synthetic: mean tokens")
    parser.add_argument("--length-cv", type=float, default=0.0, help="synthetic: of both lengths")
    parser.add_argument("--cv", type=float, default=3.0, help="synthetic:gamma: of gaps")
    parser.add_argument("--peak", type=float, default=7.5, help="synthetic:diurnal: over the mean")
    parser.add_argument("--model", required=True, help="name with facts, or a checkpoint folder")
    parser.add_argument("--system", default="h100_sxm", choices=device_names())
    parser.add_argument("--expert-system", choices=device_names(), help="default: as --system")
    parser.add_argument("--policy", default="janus,sglang", help=f"some of {KNOWN}, with commas")
    parser.add_argument("--max-gpus", type=int, default=64)
    parser.add_argument(
        "--slots-per-expert", type=float, help="of pools (default: planners choose; static: 1.25)"
    )
    parser.add_argument(
        "--routing", default="topics", help="file of `--record-routing`, or a synthetic router"
    )
    parser.add_argument("--tpot", type=float, default=150.0, help="objective, ms")
    parser.add_argument("--ttft", type=float, default=2000.0, help="objective, ms")
    parser.add_argument("--headroom", type=float, default=1.3, help="rate provided for over seen")
    parser.add_argument(
        "--rate-quantile",
        type=float,
        metavar="Q",
        help="provide for this quantile of the minutes looked back at if it is above the mean "
        "(1: the busiest minute; default: the mean alone)",
    )
    parser.add_argument(
        "--look-back", type=float, help="s of minutes to look back at (default: the interval)"
    )
    parser.add_argument(
        "--tpot-margin", type=float, default=0.0, help="share of --tpot that plans leave free"
    )
    parser.add_argument("--interval", type=float, default=900.0, help="s between decisions")
    parser.add_argument(
        "--on-load",
        type=float,
        help="decide early at this many times the rate, or the requests under way",
    )
    parser.add_argument("--start-seconds", type=float, default=20.0, help="to start an instance")
    parser.add_argument("--load-gbps", type=float, default=10.0, help="weights, GB/s per instance")
    parser.add_argument("--move-gbps", type=float, default=25.0, help="replicas, GB/s")
    parser.add_argument("--max-num-seqs", type=int, default=1024)
    parser.add_argument("--max-num-batched-tokens", type=int, default=2048)
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--exact", action="store_true", help="the engine's own policy code: slow")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-dir", type=Path, help="write report.html and report.json there")
    parser.add_argument("--json", type=Path, help="write the reports")
    parser.add_argument("--trace-out", type=Path, help="write a Chrome trace of the first policy")
    parser.add_argument("--plot", type=Path, help="write a picture (needs matplotlib)")


def run(arguments: argparse.Namespace) -> int:
    """Prints one table with a column per policy, and the configuration of each."""
    names = [name.strip() for name in arguments.policy.split(",")]
    objective = LatencyObjective(
        tpot_s=arguments.tpot / 1e3,
        ttft_s=arguments.ttft / 1e3,
    )
    timing = SimulationSettings(
        interval_s=arguments.interval,
        check_s=min(60.0, arguments.interval),
        on_load=arguments.on_load,
        look_back_s=arguments.look_back,
        log_steps=LOGGED_STEPS if arguments.trace_out else 0,
    )
    loading = Loading(
        start_s=arguments.start_seconds,
        load_bytes_per_s=arguments.load_gbps * 1e9,
        move_bytes_per_s=arguments.move_gbps * 1e9,
    )
    workload = _workload(arguments)
    choices = _choices(arguments, objective.tpot_s)
    policies = [named_policy(name, choices, workload, timing.interval_s) for name in names]
    simulations, seconds = [], []
    for policy in policies:
        began = time.perf_counter()
        pool = PolicyPool if arguments.exact else CompiledPool
        simulations.append(simulate(workload, policy, timing, loading, pool))
        seconds.append(time.perf_counter() - began)
    made = Comparison(
        heading=_heading(arguments, workload),
        reports=tuple(make_report(simulation, objective) for simulation in simulations),
    )
    width = max(Console().width, MIN_WIDTH)
    made.show(Console(highlight=False, soft_wrap=True, width=width), seconds)
    written = made.write(arguments.save_dir, arguments.json, arguments.plot)
    if arguments.trace_out:
        write_chrome_trace(simulations[0], arguments.trace_out)
        written.append(arguments.trace_out)
    for path in written:
        print(f"wrote {path}")
    if not written:
        print("--save-dir DIR writes this as report.html with plots, and all figures as JSON")
    return 0


def _heading(arguments: argparse.Namespace, workload: RequestTrace) -> str:
    """What was simulated, in sentences."""
    parts = [
        f"{workload.name}: {workload.num_requests:,} requests in {workload.duration_s:,.0f} s, "
        f"mean {workload.prompt_tokens.mean():.0f} tokens in and "
        f"{workload.output_tokens.mean():.0f} out"
    ]
    if workload.num_skipped:
        parts.append(f"{workload.num_skipped} empty ones left out")
    experts = f", experts on {arguments.expert_system}" if arguments.expert_system else ""
    early = "" if arguments.on_load is None else f" or at {arguments.on_load:g} times the load"
    parts += [
        f"{arguments.model} on {arguments.system}{experts}, times from the oracle",
        f"objective {arguments.tpot:g} ms per token and {arguments.ttft:g} ms to the first",
        f"a decision every {arguments.interval:g} s{early}",
        f"new instances take {arguments.start_seconds:g} s and their weights at "
        f"{arguments.load_gbps:g} GB/s, replicas move at {arguments.move_gbps:g} GB/s",
        f"routing {arguments.routing}, seed {arguments.seed}",
    ]
    if workload.prefix is not None and not arguments.exact:
        parts.append("prefixes are not reused without --exact: every prompt is computed")
    return "; ".join(parts)


def _workload(arguments: argparse.Namespace) -> RequestTrace:
    if not arguments.trace.startswith(SYNTHETIC):
        workload = load_trace(Path(arguments.trace), arguments.format)
        if arguments.start or arguments.duration is not None:
            duration = workload.duration_s + 1 if arguments.duration is None else arguments.duration
            workload = workload.window(arguments.start, duration)
        return workload.faster(arguments.speed)
    return generate(
        arguments.trace.removeprefix(SYNTHETIC),
        arguments.rate * arguments.speed,
        3600.0 if arguments.duration is None else arguments.duration,
        arguments.seed,
        Lengths(mean=arguments.input_len, cv=arguments.length_cv),
        Lengths(mean=arguments.output_len, cv=arguments.length_cv),
        arguments.cv,
        arguments.peak,
    )


def _choices(arguments: argparse.Namespace, tpot_s: float) -> PolicyContext:
    oracle = Oracle.build(arguments.model, arguments.system, arguments.expert_system)
    model, per_expert = oracle.model, arguments.slots_per_expert
    sample = _sampler(arguments.routing, model.num_experts, model.top_k, arguments.seed)
    limits = BatchLimits(
        arguments.block_size, arguments.max_num_seqs, arguments.max_num_batched_tokens
    )
    if min(limits) < 1:
        raise ConfigError(f"block size, sequences and tokens must be 1 or more, got {limits}")
    max_activated = SampledMaxActivated(sample, model.num_experts, seed=arguments.seed)
    slots = 1.25 if per_expert is None else per_expert
    return PolicyContext(
        deployments=Deployments(oracle, max_activated, limits, slots),
        problem=planning_problem(
            oracle, sample, limits, tpot_s, arguments.max_gpus, arguments.seed
        ),
        headroom=arguments.headroom,
        rate_quantile=arguments.rate_quantile,
        tpot_margin=arguments.tpot_margin,
        changes=() if per_expert is None else (("redundancies", (per_expert,)),),
    )


def _sampler(routing: str, num_experts: int, top_k: int, seed: int) -> BatchSampler:
    """One layer's router: a synthetic one, or the middle layer of a recorded trace."""
    if routing in get_args(SyntheticKind):
        return SyntheticRouter(routing, num_experts, top_k, seed).batch  # type: ignore[arg-type]
    if not Path(routing).exists():
        kinds = ", ".join(get_args(SyntheticKind))
        raise ConfigError(f"--routing {routing} is neither a file nor one of {kinds}")
    trace = RoutingTrace.load(Path(routing))
    if (trace.num_experts, trace.top_k) != (num_experts, top_k):
        raise ConfigError(
            f"{routing} has top-{trace.top_k} of {trace.num_experts} experts, the model "
            f"top-{top_k} of {num_experts}"
        )
    layer = trace.num_layers // 2
    return lambda num_tokens, rng: trace.sample(layer, num_tokens, rng)

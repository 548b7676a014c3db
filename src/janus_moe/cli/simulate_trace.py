"""`janus simulate trace TRACE`: requests through deployments that scale, without a GPU."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.table import Table

from janus_moe.errors import ConfigError
from janus_moe.perf import Oracle, device_names
from janus_moe.policy.estimate import Sampler
from janus_moe.policy.routing_trace import RoutingTrace
from janus_moe.policy.synthetic import SyntheticKind, SyntheticRouter
from janus_moe.sim.chrome import write_chrome_trace
from janus_moe.sim.deployment import Deployments, SampledAmax
from janus_moe.sim.generators import Arrivals, Lengths, generate
from janus_moe.sim.policies import KNOWN, named_policy
from janus_moe.sim.pools import CompiledPool
from janus_moe.sim.reference import PolicyPool
from janus_moe.sim.report import Objective, Report, make_report
from janus_moe.sim.scaling import Loading
from janus_moe.sim.simulate import Simulation, Timing, simulate
from janus_moe.sim.state import Limits
from janus_moe.sim.traces import TraceFormat, load_trace
from janus_moe.sim.workload import Workload

SYNTHETIC = "synthetic:"
LOGGED_STEPS = 20_000

ROWS = (
    ("requests", "completed", "{:.0f}"),
    ("output tokens/s", "output_throughput", "{:.1f}"),
    ("TTFT ms, median", "median_ttft_ms", "{:.1f}"),
    ("TTFT ms, p99", "p99_ttft_ms", "{:.1f}"),
    ("TPOT ms, median", "median_tpot_ms", "{:.2f}"),
    ("TPOT ms, p99", "p99_tpot_ms", "{:.2f}"),
    ("end to end ms, median", "median_e2el_ms", "{:.0f}"),
    ("met the objective", "slo_attainment", "{:.2%}"),
    ("GPU hours", "gpu_hours", "{:.2f}"),
    ("most GPUs", "max_gpus", "{:.0f}"),
    ("tokens/s per GPU", "output_tokens_per_gpu_s", "{:.1f}"),
    ("preemptions", "num_preemptions", "{:.0f}"),
    ("rejected", "rejected", "{:.0f}"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What arrives, what serves it, who decides."""
    names = ", ".join(SYNTHETIC + name for name in get_args(Arrivals))
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
    parser.add_argument("--policy", default="janus,monolithic", help=f"some of {KNOWN}")
    parser.add_argument("--max-gpus", type=int, default=64)
    parser.add_argument("--slots-per-expert", type=float, default=1.25, help="of pools")
    parser.add_argument(
        "--routing", default="topics", help="file of `--record-routing`, or a synthetic router"
    )
    parser.add_argument("--tpot", type=float, default=150.0, help="objective, ms")
    parser.add_argument("--ttft", type=float, help="objective, ms")
    parser.add_argument("--headroom", type=float, default=1.3, help="rate provided for over seen")
    parser.add_argument("--interval", type=float, default=900.0, help="s between decisions")
    parser.add_argument("--on-load", type=float, help="decide early at this many times the rate")
    parser.add_argument("--start-seconds", type=float, default=20.0, help="to start an instance")
    parser.add_argument("--load-gbps", type=float, default=10.0, help="weights, GB/s per instance")
    parser.add_argument("--move-gbps", type=float, default=25.0, help="replicas, GB/s")
    parser.add_argument("--max-num-seqs", type=int, default=1024)
    parser.add_argument("--max-num-batched-tokens", type=int, default=2048)
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--exact", action="store_true", help="the engine's own policy code: slow")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the reports")
    parser.add_argument("--trace-out", type=Path, help="write a Chrome trace of the first policy")
    parser.add_argument("--plot", type=Path, help="write a picture (needs matplotlib)")


def run(arguments: argparse.Namespace) -> int:
    """Prints one table with a column per policy."""
    names = [name.strip() for name in arguments.policy.split(",")]
    objective = Objective(
        tpot_s=arguments.tpot / 1e3,
        ttft_s=None if arguments.ttft is None else arguments.ttft / 1e3,
    )
    timing = Timing(
        interval_s=arguments.interval,
        check_s=min(60.0, arguments.interval),
        on_load=arguments.on_load,
        log_steps=LOGGED_STEPS if arguments.trace_out else 0,
    )
    loading = Loading(
        start_s=arguments.start_seconds,
        load_bytes_per_s=arguments.load_gbps * 1e9,
        move_bytes_per_s=arguments.move_gbps * 1e9,
    )
    deployments = _deployments(arguments)
    policies = [
        named_policy(name, deployments, arguments.max_gpus, objective.tpot_s, arguments.headroom)
        for name in names
    ]
    workload = _workload(arguments)
    simulations, reports = [], []
    for policy in policies:
        began = time.perf_counter()
        pool = PolicyPool if arguments.exact else CompiledPool
        simulation = simulate(workload, policy, timing, loading, pool)
        report = make_report(simulation, objective)
        simulations.append((simulation, time.perf_counter() - began))
        reports.append(report)
    _print(arguments, workload, simulations, reports)
    _write(arguments, [simulation for simulation, _ in simulations], reports)
    return 0


def _workload(arguments: argparse.Namespace) -> Workload:
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


def _deployments(arguments: argparse.Namespace) -> Deployments:
    oracle = Oracle.build(arguments.model, arguments.system, arguments.expert_system)
    model = oracle.model
    sample = _sampler(arguments.routing, model.num_experts, model.top_k, arguments.seed)
    limits = Limits(arguments.block_size, arguments.max_num_seqs, arguments.max_num_batched_tokens)
    if min(limits) < 1:
        raise ConfigError(f"block size, sequences and tokens must be 1 or more, got {limits}")
    a_max = SampledAmax(sample, model.num_experts, seed=arguments.seed)
    return Deployments(oracle, a_max, limits, arguments.slots_per_expert)


def _sampler(routing: str, num_experts: int, top_k: int, seed: int) -> Sampler:
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


def _print(
    arguments: argparse.Namespace,
    workload: Workload,
    simulations: Sequence[tuple[Simulation, float]],
    reports: Sequence[Report],
) -> None:
    console = Console()
    tokens = workload.output_tokens.mean()
    console.print(
        f"{workload.name}: {workload.num_requests} requests in {workload.duration_s:.0f} s, mean "
        f"{workload.prompt_tokens.mean():.0f} tokens in and {tokens:.0f} out"
        + (f"; {workload.num_skipped} empty ones left out" if workload.num_skipped else "")
        + f". {arguments.model} on {arguments.system}, times from the oracle; objective "
        f"{arguments.tpot:g} ms per token",
        highlight=False,
    )
    if workload.prefix is not None and not arguments.exact:
        console.print("prefixes are not reused without --exact: every prompt is computed")
    table = Table()
    table.add_column("")
    for report in reports:
        table.add_column(report.policy, justify="right")
    for title, key, form in ROWS:
        table.add_row(title, *(_cell(report.figures[key], form) for report in reports))
    table.add_row("last deployment", *(r.decisions[-1].deployment for r in reports))
    table.add_row("simulated in", *(f"{seconds:.1f} s" for _, seconds in simulations), style="dim")
    console.print(table)


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _write(
    arguments: argparse.Namespace, simulations: Sequence[Simulation], reports: Sequence[Report]
) -> None:
    if arguments.json:
        try:
            arguments.json.write_text(f"[{','.join(report.to_json() for report in reports)}]\n")
        except OSError as error:
            raise ConfigError(f"cannot write {arguments.json}: {error.strerror}") from None
    if arguments.trace_out:
        write_chrome_trace(simulations[0], arguments.trace_out)
    if arguments.plot:
        _plot(reports, arguments.plot)


def _plot(reports: Sequence[Report], path: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("--plot needs matplotlib: pip install 'janus-moe[bench]'") from None
    panels = (
        ("request_rate", "requests/s"),
        ("gpus", "GPUs held"),
        ("mean_step_ms", "mean step, ms"),
        ("attained", "share that met the objective"),
    )
    figure: Any = Figure(figsize=(9, 10), layout="constrained")
    axes: Any = figure.subplots(len(panels), 1, sharex=True)
    for axis, (key, title) in zip(axes, panels, strict=True):
        for report in reports:
            hours = [one.start_s / 3600 for one in report.intervals]
            values = [getattr(one, key) for one in report.intervals]
            points = [float("nan") if value is None else value for value in values]
            axis.step(hours, points, where="post", label=report.policy)
        axis.set_ylabel(title)
    axes[0].legend(fontsize="small")
    axes[-1].set_xlabel("hours")
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot write {path}: {error}") from None

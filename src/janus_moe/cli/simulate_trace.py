"""`janus simulate trace TRACE`: requests through deployments that scale, without a GPU."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, get_args

import msgspec

from janus_moe.cli.extras import note_missing_plots, require_extra
from janus_moe.cli.flags import Command, flag
from janus_moe.cli.outputs import ReportConsole
from janus_moe.cli.simulate_report import Comparison
from janus_moe.errors import ConfigError
from janus_moe.planner.latency import Oracle, device_names, read_profile
from janus_moe.planner.search.measured import machine_oracle
from janus_moe.planner.simulation.chrome import write_chrome_trace
from janus_moe.planner.simulation.deployment import Deployments
from janus_moe.planner.simulation.generators import ArrivalProcess, Lengths, generate
from janus_moe.planner.simulation.max_activated import SampledMaxActivated
from janus_moe.planner.simulation.planned import planning_problem
from janus_moe.planner.simulation.policies import (
    KNOWN,
    PolicyContext,
    named_policy,
    parse_size,
)
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
SYNTHETIC_NAMES = ", ".join(SYNTHETIC + name for name in get_args(ArrivalProcess))
LOGGED_STEPS = 20_000
MOST_GPUS, MOST_REQUESTS = 2**14, 10**8


class Requests(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What arrives."""

    trace: Annotated[str, flag(f"a file, or {SYNTHETIC_NAMES}", positional=True)]
    format: Annotated[TraceFormat | None, flag("default: by the first line")] = None
    start: Annotated[float, flag("first second of the trace", metavar="S", at_least=0)] = 0.0
    duration: Annotated[
        float | None, flag("seconds (synthetic: default 3600)", metavar="S", above=0)
    ] = None
    speed: Annotated[float, flag("times the trace's own rate", above=0)] = 1.0
    rate: Annotated[float, flag("synthetic: mean requests per second", metavar="R", above=0)] = 10.0
    input_len: Annotated[float, flag("synthetic: mean tokens", metavar="N", at_least=1)] = 16.0
    output_len: Annotated[float, flag("synthetic: mean tokens", metavar="N", at_least=1)] = 256.0
    length_cv: Annotated[
        float, flag("synthetic: coefficient of variation of both lengths", at_least=0)
    ] = 0.0
    cv: Annotated[
        float,
        flag("synthetic:gamma: coefficient of variation of the gaps", at_least=0.01, at_most=100),
    ] = 3.0
    peak: Annotated[
        float, flag("synthetic:diurnal: the highest rate over the mean", at_least=1)
    ] = 7.5


class Deployed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What serves them."""

    model: Annotated[str | None, flag("name with facts, Hugging Face id, or a folder")] = None
    profile: Annotated[
        Path | None,
        flag("model and machine that `janus profile` measured, for policies static:xAyE"),
    ] = None
    system: Annotated[str, flag(", ".join(device_names()), metavar="DEVICE")] = "h100_sxm"
    expert_system: Annotated[
        str | None, flag("devices of the expert pool, if others", metavar="DEVICE")
    ] = None
    max_gpus: Annotated[int, flag("of a deployment", at_least=1, at_most=MOST_GPUS)] = 64
    slots_per_expert: Annotated[
        float | None, flag("of pools (default: planners choose; static: 1.25)", at_least=1)
    ] = None
    routing: Annotated[str, flag("file of `--record-routing`, or a synthetic router")] = "topics"
    max_num_seqs: Annotated[int, flag("sequences per step and attention instance", at_least=1)] = (
        1024
    )
    max_num_batched_tokens: Annotated[
        int, flag("tokens per step and attention instance", at_least=1)
    ] = 2048
    block_size: Annotated[int, flag("tokens per KV block", at_least=1)] = 16
    exact: Annotated[bool, flag("the engine's own policy code: slow")] = False
    seed: Annotated[int, flag("of requests and routing", at_least=0)] = 0

    def __post_init__(self) -> None:
        if (self.model is None) == (self.profile is None):
            raise ConfigError(
                "give either --model NAME, or --profile FILE with the model that was measured"
            )


class Scaling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who decides what serves, and when."""

    policy: Annotated[str, flag(f"some of {KNOWN}, with commas")] = "janus,sglang"
    tpot: Annotated[float, flag("objective", metavar="MS", above=0)] = 150.0
    ttft: Annotated[float, flag("objective", metavar="MS", above=0)] = 2000.0
    headroom: Annotated[float, flag("rate provided for over the rate seen", above=0)] = 1.3
    rate_quantile: Annotated[
        float | None,
        flag(
            "provide for this quantile of the minutes looked back at if it is above the mean "
            "(1: the busiest minute; default: the mean alone)",
            metavar="Q",
            at_least=0,
            at_most=1,
        ),
    ] = None
    look_back: Annotated[
        float | None,
        flag("seconds of minutes to look back at (default: --interval)", metavar="S", above=0),
    ] = None
    tpot_margin: Annotated[
        float, flag("share of --tpot that plans leave free", at_least=0, at_most=0.99)
    ] = 0.0
    interval: Annotated[float, flag("seconds between decisions", metavar="S", above=0)] = 900.0
    on_load: Annotated[
        float | None,
        flag("decide early at this many times the rate, or the requests under way", above=1),
    ] = None
    start_seconds: Annotated[float, flag("to start an instance", metavar="S", at_least=0)] = 20.0
    load_gbps: Annotated[float, flag("weights, GB/s per instance", above=0)] = 10.0
    move_gbps: Annotated[float, flag("replicas, GB/s", above=0)] = 25.0


class SimulateOutput(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is written."""

    save_dir: Annotated[
        Path | None,
        flag("write report.html and report.json there", metavar="FOLDER", writes="folder"),
    ] = None
    json: Annotated[Path | None, flag("write the reports there", writes="file")] = None
    trace_out: Annotated[
        Path | None, flag("write a Chrome trace of the first policy", writes="file")
    ] = None
    plot: Annotated[
        Path | None, flag("write a picture there (needs matplotlib)", writes="file")
    ] = None


def run(requests: Requests, deployed: Deployed, scaling: Scaling, output: SimulateOutput) -> int:
    """Prints one table with a column per policy, and the configuration of each."""
    if output.plot:
        require_extra("matplotlib", "--plot")
    names = [name.strip() for name in scaling.policy.split(",")]
    objective = LatencyObjective(
        tpot_s=scaling.tpot / 1e3,
        ttft_s=scaling.ttft / 1e3,
    )
    timing = SimulationSettings(
        interval_s=scaling.interval,
        check_s=min(60.0, scaling.interval),
        on_load=scaling.on_load,
        look_back_s=scaling.look_back,
        log_steps=LOGGED_STEPS if output.trace_out else 0,
    )
    loading = Loading(
        start_s=scaling.start_seconds,
        load_bytes_per_s=scaling.load_gbps * 1e9,
        move_bytes_per_s=scaling.move_gbps * 1e9,
    )
    workload = _workload(requests, deployed.seed)
    oracles = _oracles(deployed, names)
    policies = [
        named_policy(name, _choices(deployed, scaling, oracle), workload, timing.interval_s)
        for name, oracle in zip(names, oracles, strict=True)
    ]
    simulations, seconds = [], []
    for policy in policies:
        began = time.perf_counter()
        pool = PolicyPool if deployed.exact else CompiledPool
        simulations.append(simulate(workload, policy, timing, loading, pool))
        seconds.append(time.perf_counter() - began)
    made = Comparison(
        heading=_heading(workload, deployed, scaling),
        reports=tuple(make_report(simulation, objective) for simulation in simulations),
    )
    made.show(ReportConsole(), seconds)
    written = made.write(output.save_dir, output.json, output.plot)
    if output.trace_out:
        write_chrome_trace(simulations[0], output.trace_out)
        written.append(output.trace_out)
    for path in written:
        print(f"wrote {path}")
    if output.save_dir and (missing := note_missing_plots()):
        print(missing)
    if not written:
        print("--save-dir DIR writes this as report.html with plots, and all figures as JSON")
    return 0


def _heading(workload: RequestTrace, deployed: Deployed, scaling: Scaling) -> str:
    """Returns what was simulated, in sentences."""
    parts = [
        f"{workload.name}: {workload.num_requests:,} requests in {workload.duration_s:,.0f} s, "
        f"mean {workload.prompt_tokens.mean():.0f} tokens in and "
        f"{workload.output_tokens.mean():.0f} out"
    ]
    if workload.num_skipped:
        parts.append(f"{workload.num_skipped} empty ones left out")
    experts = f", experts on {deployed.expert_system}" if deployed.expert_system else ""
    early = "" if scaling.on_load is None else f" or at {scaling.on_load:g} times the load"
    parts += [
        f"{deployed.model} on {deployed.system}{experts}, times from the oracle"
        if deployed.profile is None
        else f"the machine and model of {deployed.profile.name}",
        f"objective {scaling.tpot:g} ms per token and {scaling.ttft:g} ms to the first",
        f"a decision every {scaling.interval:g} s{early}",
        f"new instances take {scaling.start_seconds:g} s and their weights at "
        f"{scaling.load_gbps:g} GB/s, replicas move at {scaling.move_gbps:g} GB/s",
        f"routing {deployed.routing}, seed {deployed.seed}",
    ]
    if workload.prefix is not None and not deployed.exact:
        parts.append("prefixes are not reused without --exact: every prompt is computed")
    return "; ".join(parts)


def _workload(requests: Requests, seed: int) -> RequestTrace:
    if not requests.trace.startswith(SYNTHETIC):
        workload = load_trace(Path(requests.trace), requests.format)
        if requests.start or requests.duration is not None:
            duration = workload.duration_s + 1 if requests.duration is None else requests.duration
            workload = workload.window(requests.start, duration)
        return workload.faster(requests.speed)
    duration_s = 3600.0 if requests.duration is None else requests.duration
    if (expected := requests.rate * requests.speed * duration_s) > MOST_REQUESTS:
        raise ConfigError(
            f"--rate {requests.rate:g} for {duration_s:g} s are {expected:.3g} requests; at most "
            f"{MOST_REQUESTS:.0e} can be simulated, so lower --rate, --speed or --duration"
        )
    return generate(
        requests.trace.removeprefix(SYNTHETIC),  # type: ignore[arg-type]  # it refuses others
        requests.rate * requests.speed,
        duration_s,
        seed,
        Lengths(mean=requests.input_len, cv=requests.length_cv),
        Lengths(mean=requests.output_len, cv=requests.length_cv),
        requests.cv,
        requests.peak,
    )


def _oracles(deployed: Deployed, policies: Sequence[str]) -> list[Oracle]:
    """Returns what says how long steps take, for each policy: a measured shape has its own."""
    if deployed.profile is None:
        assert deployed.model is not None
        oracle = Oracle.build(deployed.model, deployed.system, deployed.expert_system)
        return [oracle] * len(policies)
    profile, found = read_profile(deployed.profile), []
    for policy in policies:
        size = parse_size(policy.removeprefix("static:")) if "static:" in policy else None
        if size is None or not size.num_expert:
            raise ConfigError(
                f"a profile has figures of pools of fixed size; use --policy static:1A2E, not "
                f"{policy!r}"
            )
        found.append(machine_oracle(profile, size.num_attention, size.num_expert))
    return found


def _choices(deployed: Deployed, scaling: Scaling, oracle: Oracle) -> PolicyContext:
    model, per_expert = oracle.model, deployed.slots_per_expert
    sample = _sampler(
        deployed.routing, model.moe.num_experts, model.moe.router.top_k, deployed.seed
    )
    limits = BatchLimits(
        deployed.block_size, deployed.max_num_seqs, deployed.max_num_batched_tokens
    )
    max_activated = SampledMaxActivated(sample, model.moe.num_experts, seed=deployed.seed)
    slots = 1.25 if per_expert is None else per_expert
    return PolicyContext(
        deployments=Deployments(oracle, max_activated, limits, slots),
        problem=planning_problem(
            oracle, sample, limits, scaling.tpot / 1e3, deployed.max_gpus, deployed.seed
        ),
        headroom=scaling.headroom,
        rate_quantile=scaling.rate_quantile,
        tpot_margin=scaling.tpot_margin,
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


COMMAND = Command(options=(Requests, Deployed, Scaling, SimulateOutput), run=run)

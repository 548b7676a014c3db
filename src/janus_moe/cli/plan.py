"""`janus plan`: how many GPUs of each pool, or why not, from facts about model and devices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import msgspec

from janus_moe.cli import plan_report
from janus_moe.cli.extras import note_missing_plots
from janus_moe.cli.flags import Command, flag
from janus_moe.cli.outputs import ReportConsole, write_text
from janus_moe.cli.prices import priced
from janus_moe.errors import ConfigError
from janus_moe.planner.latency import (
    Oracle,
    ServeSource,
    device_names,
    model_names,
    read_profile,
    serve_source,
)
from janus_moe.planner.search.activation import ActivationSource, lognormal, uniform
from janus_moe.planner.search.measured import recommend_measured
from janus_moe.planner.search.paper import Calibration, calibrated, note
from janus_moe.planner.search.problem import (
    Batching,
    Concurrency,
    CostObjective,
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
from janus_moe.spec import FormatName

DEFAULT_GPUS = 1024
MOST_GPUS = 2**14
"""Beyond it the search takes minutes and gigabytes."""


class PlanQuestion(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is asked."""

    model: Annotated[
        str | None,
        flag(
            f"{', '.join(model_names())}, a Hugging Face id of these, or a folder", positional=True
        ),
    ] = None
    profile: Annotated[
        Path | None,
        flag("plan for the model and machine that `janus profile` wrote, instead of a --system"),
    ] = None
    system: Annotated[str, flag(", ".join(device_names()), metavar="DEVICE")] = "h200_sxm"
    expert_system: Annotated[
        str | None, flag("devices of the expert pool, if others", metavar="DEVICE")
    ] = None
    isl: Annotated[int, flag("input tokens of a request", at_least=1)] = 1024
    osl: Annotated[int, flag("output tokens of a request", at_least=1)] = 512
    tpot: Annotated[float, flag("ms per output token at most", metavar="MS", above=0)] = 50.0
    ttft: Annotated[
        float | None, flag("mean ms to the first token, queue included", metavar="MS", above=0)
    ] = None
    target_request_rate: Annotated[
        float | None, flag("requests per second", metavar="R", above=0)
    ] = None
    target_concurrency: Annotated[
        float | None, flag("requests at once", metavar="C", at_least=1)
    ] = None
    total_gpus: Annotated[
        int | None, flag("at most so many GPUs", at_least=1, at_most=MOST_GPUS)
    ] = None
    objective: Annotated[CostObjective, flag("what is least")] = "gpus"
    gpu_price: Annotated[
        str | None,
        flag("dollars per hour, for --objective price", metavar="H100=2.5,H20=1.2"),
    ] = None

    def __post_init__(self) -> None:
        if (self.model is None) == (self.profile is None):
            raise ConfigError(
                "give either a MODEL, or --profile FILE with the model that was measured"
            )
        if None not in (self.target_request_rate, self.target_concurrency):
            raise ConfigError(
                "--target-request-rate and --target-concurrency both say how much is asked for; "
                "leave out one"
            )


class PlanDetails(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Details of model and service."""

    weights: Annotated[FormatName | None, flag("default: as published")] = None
    expert_weights: Annotated[FormatName | None, flag("default: as --weights")] = None
    kv_cache_dtype: Annotated[FormatName, flag("of the KV cache")] = "bfloat16"
    slots: Annotated[
        int | None, flag("experts per instance and layer", metavar="C", at_least=1)
    ] = None
    trace: Annotated[Path | None, flag("routing that `--record-routing` wrote")] = None
    routing_spread: Annotated[
        float,
        flag(
            "without a trace: spread of the experts' log popularity; 0: uniform",
            metavar="S",
            at_least=0,
        ),
    ] = 0.0
    prefill: Annotated[Prefill, flag("excluded: other devices compute the prompts")] = "included"
    max_num_batched_tokens: Annotated[
        int, flag("prompt tokens in a step of an attention instance", at_least=1)
    ] = 2048
    calibration: Annotated[
        Calibration, flag("paper: adds constants that reproduce figures of arXiv 2512.13525")
    ] = "honest"


class PlanOutput(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is shown and written."""

    top_n: Annotated[int, flag("shapes to list", at_least=1)] = 5
    strict_sla: Annotated[bool, flag("fail where nothing meets it all")] = False
    explain: Annotated[bool, flag("where time and memory go", alias="--detail")] = False
    save_dir: Annotated[
        Path | None,
        flag("write settings, figures and plots there", metavar="FOLDER", writes="folder"),
    ] = None
    json: Annotated[Path | None, flag("write all figures there", writes="file")] = None


def run(question: PlanQuestion, details: PlanDetails, output: PlanOutput) -> int:
    """0: there is a plan. 1: there is none, and `--strict-sla` asked for one."""
    style = PoolStyle(slots=details.slots)
    if question.profile is not None:
        report = _measured(question.profile, question, details, style, output.top_n)
    else:
        assert question.model is not None
        problem = problem_of(question, details, _oracle(question, details))
        report = plan_report.PlanReport(
            plan=recommend(problem, style, MonolithicStyle(), output.top_n),
            style=style,
            model=question.model,
            source=serve_source(question.model),
            note=note(details.calibration),
        )
    report.show(ReportConsole(), output.explain)
    if output.json:
        write_text(output.json, json.dumps(report.as_json(), indent=1) + "\n")
    if output.save_dir:
        for path in report.save(output.save_dir):
            print(f"wrote {path}")
        if missing := note_missing_plots():
            print(missing)
    return 1 if output.strict_sla and report.plan.best is None else 0


def _measured(
    path: Path, question: PlanQuestion, details: PlanDetails, style: PoolStyle, top_n: int
) -> plan_report.PlanReport:
    """Returns a plan for the machine of a profile."""
    profile = read_profile(path)
    plan = recommend_measured(
        profile, lambda oracle: problem_of(question, details, oracle), style, top_n
    )
    return plan_report.PlanReport(
        plan=plan,
        style=style,
        model=profile.model.name,
        source=ServeSource(profile.model.name, ()),
        profile=profile,
        note=f"times of {path.name}, measured on this kind of machine; instances share it",
    )


def _oracle(question: PlanQuestion, details: PlanDetails) -> Oracle:
    assert question.model is not None
    return Oracle.build(
        question.model,
        question.system,
        question.expert_system,
        weights=details.weights,
        expert_weights=details.expert_weights,
        kv_format=details.kv_cache_dtype,
    )


def problem_of(question: PlanQuestion, details: PlanDetails, oracle: Oracle) -> Problem:
    """Returns what the planner is asked; raises ConfigError for what cannot be asked."""
    if question.gpu_price is not None:
        oracle = priced(oracle, question.gpu_price)
    lengths = RequestLengths(isl=question.isl, osl=question.osl)
    positions = oracle.model.max_position
    if positions and lengths.isl + lengths.osl > positions:
        raise ConfigError(
            f"--isl {question.isl} and --osl {question.osl} are "
            f"{question.isl + question.osl} tokens, but {oracle.model.name} has {positions} "
            "positions; ask for less"
        )
    demand = _demand(question, lengths)
    if isinstance(demand, Saturate) and question.total_gpus is None and question.profile is None:
        raise ConfigError(
            "say how much is asked for: --target-request-rate R, --target-concurrency C, or "
            "--total-gpus N for as much as N GPUs can serve"
        )
    return Problem(
        oracle=calibrated(oracle, details.calibration),
        activation=_activation(details, oracle),
        lengths=lengths,
        demand=demand,
        tpot_s=question.tpot / 1e3,
        max_gpus=DEFAULT_GPUS if question.total_gpus is None else question.total_gpus,
        objective=question.objective,
        batching=Batching(max_prompt_tokens=details.max_num_batched_tokens),
        prefill=details.prefill,
        ttft_s=None if question.ttft is None else question.ttft / 1e3,
    )


def _demand(question: PlanQuestion, lengths: RequestLengths) -> ServiceDemand:
    if question.target_request_rate is not None:
        return Rate(question.target_request_rate * lengths.osl)
    if question.target_concurrency is not None:
        return Concurrency(question.target_concurrency)
    return Saturate()


def _activation(details: PlanDetails, oracle: Oracle) -> ActivationSource:
    model = oracle.model
    if details.trace is not None:
        return from_trace(RoutingTrace.load(details.trace), f"routing of {details.trace.name}")
    if details.routing_spread:
        return lognormal(model.moe.num_experts, model.moe.router.top_k, details.routing_spread)
    return uniform(model.moe.num_experts, model.moe.router.top_k)


COMMAND = Command(options=(PlanQuestion, PlanDetails, PlanOutput), run=run)

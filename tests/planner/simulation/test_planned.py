"""Planners as policies of scaling: the fewest GPUs for what is seen, in their own style."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from janus_moe.errors import ConfigError
from janus_moe.planner.latency import Oracle
from janus_moe.planner.search import answers
from janus_moe.planner.search.problem import Rate
from janus_moe.planner.search.problem import RequestLengths as Means
from janus_moe.planner.simulation.deployment import Deployments, SimDeployment
from janus_moe.planner.simulation.generators import Lengths, generate
from janus_moe.planner.simulation.max_activated import SampledMaxActivated
from janus_moe.planner.simulation.planned import DRAIN_S, PlannedPolicy, planning_problem
from janus_moe.planner.simulation.policies import PLANNERS, PolicyContext, named_policy
from janus_moe.planner.simulation.report import LatencyObjective, make_report
from janus_moe.planner.simulation.scaling import ObservedDemand, StaticPolicy
from janus_moe.planner.simulation.simulate import SimulationSettings, simulate
from janus_moe.planner.simulation.state import BatchLimits
from janus_moe.planner.simulation.workload import RequestTrace
from janus_moe.policy.synthetic import SyntheticRouter

LIMITS = BatchLimits(16, 256, 1024)
WORKLOAD = generate("poisson", 2.0, 60.0)


def choices(max_gpus: int = 32, tpot_s: float = 0.05) -> PolicyContext:
    oracle = Oracle.build("qwen3-30b-a3b", "h100_sxm")
    router = SyntheticRouter("uniform", oracle.model.moe.num_experts, oracle.model.moe.router.top_k)
    return PolicyContext(
        deployments=Deployments(oracle, SampledMaxActivated(router.batch, 128), LIMITS),
        problem=planning_problem(oracle, router.batch, LIMITS, tpot_s, max_gpus),
        headroom=1.0,
    )


@pytest.fixture(scope="module")
def shared() -> PolicyContext:
    return choices()


def policy(name: str, shared: PolicyContext) -> PlannedPolicy:
    found = named_policy(name, shared, WORKLOAD)
    assert isinstance(found, PlannedPolicy)
    return found


def demand(rate: float, waiting: int = 0) -> ObservedDemand:
    return ObservedDemand(rate, (rate,), 100.0, 200.0, waiting, waiting)


@pytest.mark.parametrize("name", PLANNERS)
def test_a_planner_grows_with_the_demand_in_its_own_style(name: str, shared: PolicyContext) -> None:
    one = policy(name, shared)
    found = [one.decide(0.0, demand(rate), None) for rate in (0.0, 5.0, 60.0)]
    gpus = [choice.deployment.num_gpus for choice in found]
    assert gpus == sorted(gpus) and (gpus[0] < gpus[-1] or name != "janus")
    assert all(choice.enough for choice in found)
    step = {"sglang": 8, "sglang-dp": 8, "xdeepserve": 4}.get(name, 1)
    assert all(count % step == 0 for count in gpus)
    how = found[-1].deployment.how
    style = one.planner.config.style
    assert style.policy in how
    assert found[-1].deployment.size.monolithic == (name in ("sglang", "sglang-dp", "monolithic"))
    assert ("agate" in how) == (name in ("megascale-infer", "xdeepserve"))
    assert any(line.startswith("policy: ") for line in one.lines)


def test_what_is_chosen_is_what_the_planner_answers(shared: PolicyContext) -> None:
    one = policy("janus", shared)
    built = one.decide(0.0, demand(40.0), None).deployment
    question = dataclasses.replace(
        shared.problem, demand=Rate(40.0 * 200.0), lengths=Means(isl=100, osl=200)
    )
    answer = one.planner.solve(question)
    assert isinstance(answer, answers.Deployment)
    assert built.num_gpus == answer.gpus


def test_those_who_wait_are_provided_for(shared: PolicyContext) -> None:
    one = policy("janus", shared)
    seen, waiting = demand(10.0), demand(10.0, waiting=round(90 * DRAIN_S))
    before = one.decide(0.0, seen, None).deployment.num_gpus
    assert one.decide(0.0, waiting, None).deployment.num_gpus > before
    assert one.decide(0.0, waiting, None).deployment.same_as(
        one.decide(0.0, demand(100.0), None).deployment
    )


def test_a_quantile_of_the_minutes_counts_where_it_is_asked_for(shared: PolicyContext) -> None:
    seen = demand(10.0)._replace(minute_rates=(5.0, 100.0, 60.0))
    for quantile, rate in ((None, 10.0), (0.0, 10.0), (0.5, 60.0), (1.0, 100.0)):
        one = policy("janus", dataclasses.replace(shared, rate_quantile=quantile))
        chosen = one.decide(0.0, seen, None).deployment
        assert chosen.same_as(one.decide(0.0, demand(rate), None).deployment)


def test_those_under_way_are_kept_within_the_objective(shared: PolicyContext) -> None:
    """A batch of B within 50 ms needs B / 50 ms tokens per second, however few arrive now."""
    one = policy("janus", shared)
    chosen = one.decide(0.0, demand(10.0)._replace(num_present=1000), None).deployment
    assert chosen.same_as(one.decide(0.0, demand(1000 / 0.05 / 200), None).deployment)
    assert chosen.num_gpus > one.decide(0.0, demand(10.0), None).deployment.num_gpus


def test_a_margin_plans_for_less_than_the_objective(shared: PolicyContext) -> None:
    one = policy("janus", dataclasses.replace(shared, tpot_margin=0.4))
    assert one.planner.problem.tpot_s == pytest.approx(0.03)
    with pytest.raises(ConfigError, match="below 1, got 1"):
        dataclasses.replace(shared, tpot_margin=1.0)


@pytest.mark.parametrize(
    ("rate", "isl", "osl"), [(40.0, 500, 100), (400.0, 16, 128), (60.0, 2000, 40)]
)
def test_planned_times_are_what_the_simulator_finds(
    rate: float, isl: int, osl: int, shared: PolicyContext
) -> None:
    """At a steady rate: prompts five times as long as outputs, many short requests, and prompts
    that fill three quarters of all steps."""
    workload = generate("poisson", rate, 20.0, 1, Lengths(mean=isl), Lengths(mean=osl))
    one = policy("janus", shared)
    question = dataclasses.replace(
        shared.problem, demand=Rate(rate * osl), lengths=Means(isl=isl, osl=osl)
    )
    answer = one.planner.solve(question)
    assert isinstance(answer, answers.Deployment)
    simulation = simulate(workload, StaticPolicy(one._built(answer)), SimulationSettings())
    found = make_report(simulation, LatencyObjective(tpot_s=0.05)).figures
    assert found["mean_tpot_ms"] == pytest.approx(1e3 * answer.tpot_s, rel=0.1)
    assert found["mean_ttft_ms"] == pytest.approx(1e3 * answer.ttft_s, rel=0.25)


def test_an_equally_cheap_shape_is_kept(shared: PolicyContext) -> None:
    one = policy("janus", shared)
    choice = one.decide(0.0, demand(400.0), None).deployment
    others, _ = one._answers(demand(400.0))
    rivals = [other for other in others[1:] if other.cost == others[0].cost]
    assert rivals
    present: SimDeployment = one._built(rivals[0])
    assert not present.same_as(choice)
    assert one.decide(0.0, demand(400.0), present).deployment.size == present.size


def test_demand_beyond_all_gpus_takes_the_most_capable_and_says_so() -> None:
    one = policy("janus", choices(max_gpus=3))
    choice = one.decide(0.0, demand(1e6), None)
    assert choice.deployment.num_gpus == 3 and not choice.enough
    report = make_report(
        simulate(
            generate("poisson", 300.0, 5.0), one, SimulationSettings(interval_s=5.0, check_s=5.0)
        ),
        LatencyObjective(tpot_s=0.05),
    )
    assert report.figures["num_short"] and not report.decisions[0].enough


def test_static_holds_what_the_busiest_interval_takes(shared: PolicyContext) -> None:
    calm, busy = (generate("poisson", rate, 100.0, 1) for rate in (1.0, 80.0))
    both = RequestTrace.of(
        "both",
        np.concatenate([calm.arrival_s, busy.arrival_s + 100.0]),
        np.concatenate([calm.prompt_tokens, busy.prompt_tokens]),
        np.concatenate([calm.output_tokens, busy.output_tokens]),
    )
    held = named_policy("static", shared, both, 100.0).decide(0.0, demand(0.0), None)
    few = policy("janus", shared).decide(0.0, demand(1.0), None)
    assert held.deployment.num_gpus > few.deployment.num_gpus


@pytest.mark.parametrize(("name", "message"), [("fastest", "known are janus, sglang")])
def test_unknown_policies_are_refused(name: str, message: str, shared: PolicyContext) -> None:
    with pytest.raises(ConfigError, match=message):
        named_policy(name, shared, WORKLOAD)


def test_planned_runs_are_equal_to_the_byte() -> None:
    def run() -> str:
        workload = generate("gamma", 20.0, 60.0, 3)
        one = named_policy("janus", choices(), workload)
        simulation = simulate(
            workload, one, SimulationSettings(interval_s=20.0, check_s=10.0, on_load=1.2)
        )
        return make_report(simulation, LatencyObjective(tpot_s=0.05, ttft_s=1.0)).to_json()

    assert run() == run()

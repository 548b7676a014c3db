"""Pools or a monolithic deployment: the verdict, the baselines, and the published decisions."""

from __future__ import annotations

import dataclasses

import pytest
from tests.planner.search.models import problem, small_model

from janus_moe.errors import ConfigError
from janus_moe.planner.latency import Oracle
from janus_moe.planner.latency.links import all_reduce_counts
from janus_moe.planner.latency.sizes import attention_side_bytes, router_bytes
from janus_moe.planner.search.activation import lognormal, uniform
from janus_moe.planner.search.answers import Deployment, Infeasible, Planner
from janus_moe.planner.search.baselines import CONFIGS, BaselinePlanner
from janus_moe.planner.search.explain import step_estimate
from janus_moe.planner.search.memory import monolithic_need
from janus_moe.planner.search.monolithic import MonolithicSearch
from janus_moe.planner.search.paper import PUBLISHED, ROUTING_SPREAD, SLOTS, calibrated, note
from janus_moe.planner.search.problem import (
    Concurrency,
    MonolithicStyle,
    PoolStyle,
    Problem,
    Rate,
    RequestLengths,
    Saturate,
    ServiceDemand,
)
from janus_moe.planner.search.recommend import recommend
from janus_moe.planner.search.search import PoolSearch


def ask(
    model: str, demand: ServiceDemand, tpot_ms: float, gpus: int, system: str = "h200_sxm"
) -> Problem:
    oracle = Oracle.build(model, system)
    return Problem(
        oracle=oracle,
        activation=uniform(oracle.model.moe.num_experts, oracle.model.moe.router.top_k),
        lengths=RequestLengths(isl=256, osl=512),
        demand=demand,
        tpot_s=tpot_ms / 1e3,
        max_gpus=gpus,
    )


@pytest.mark.parametrize("gpus", [8, 16])
@pytest.mark.parametrize("model", ["qwen3-30b-a3b", "deepseek-v3"])
def test_uniform_routing_on_equal_devices_gains_nothing_at_full_load(model: str, gpus: int) -> None:
    plan = recommend(ask(model, Saturate(), 100.0, gpus))
    assert plan.verdict is not None and plan.monolithic is not None and plan.pools
    assert not plan.verdict.disaggregate and plan.verdict.gain <= 0
    assert plan.verdict.headline == "do not disaggregate"
    assert plan.best is plan.monolithic
    assert any("experts per micro-batch" in reason for reason in plan.verdict.reasons)


def test_pools_win_where_a_monolithic_deployment_has_no_small_step() -> None:
    """DeepSeek-V2 in bfloat16: 7 H100 are enough for pools. A monolithic deployment takes 8 that
    share the heads of attention, and 16 where each has all of it."""
    question = ask("deepseek-v2", Rate(300.0), 100.0, 32, "h100_sxm")
    plan = recommend(question)
    assert plan.verdict is not None and plan.monolithic is not None
    assert plan.verdict.disaggregate and plan.best is plan.pools[0]
    assert (plan.pools[0].gpus, plan.monolithic.gpus) == (7, 8)
    assert plan.monolithic.attention_tp > 1 and " TP" in plan.monolithic.shape
    assert plan.verdict.gain == pytest.approx(8 / 7 - 1)
    whole = recommend(question, monolithic=MonolithicStyle(attention_tp=(1,))).monolithic
    assert whole is not None and (whole.gpus, whole.attention_tp) == (16, 1)
    alone = recommend(ask("deepseek-v2", Rate(300.0), 100.0, 7, "h100_sxm"))
    assert alone.monolithic is None and alone.verdict is not None and alone.verdict.disaggregate
    assert "does not fit" in alone.verdict.reasons[0]


def test_sharing_the_heads_divides_weights_and_adds_a_sum() -> None:
    """Grouped queries: the cache is divided as well, up to the number of KV heads."""
    question = problem()
    oracle, model = question.oracle, question.oracle.model
    needs = [monolithic_need(oracle, 16, 2, 500.0, tp) for tp in (1, 2, 16)]
    weights = [float(need.weights) for need in needs]
    assert weights[0] > weights[1] > weights[2]
    assert float(needs[0].weights) == attention_side_bytes(model) + router_bytes(model)
    kv = [float(need.kv) for need in needs]
    assert kv[1] == pytest.approx(kv[0]) and kv[2] == pytest.approx(2 * kv[0])  # 8 KV heads
    step = [
        oracle.step(oracle.monolithic_load(64.0, 500.0, 8, 2.0, attention_tp=t)) for t in (1, 8)
    ]
    names = [{name for name, *_ in one.explain()} for one in step]
    assert names[1] - names[0] == {"attention all-reduce"}
    counts = all_reduce_counts(8, 8, 64.0, model.hidden_size)
    assert step[1].layer["attention all-reduce"].seconds == pytest.approx(
        float(oracle.links.seconds(counts))
    )
    assert float(counts.intra_bytes) == 2 * 7 / 8 * 64 * model.hidden_size * 2
    whole = oracle.attention_layer_s(64.0, 500.0)
    assert whole / 8 < oracle.attention_layer_s(64.0, 500.0, 8) < whole


def test_one_piece_is_the_best_of_all_ways_to_share_attention() -> None:
    question = problem(6000.0, 40.0, 32)
    one = MonolithicSearch(question, MonolithicStyle()).cheapest()
    assert one is not None
    for tp in MonolithicStyle().attention_tp:
        other = MonolithicSearch(question, MonolithicStyle(attention_tp=(tp,))).cheapest()
        assert other is None or one.rank <= other.rank


def test_a_plan_is_impossible_only_where_neither_is_possible() -> None:
    plan = recommend(ask("deepseek-v2", Rate(300.0), 100.0, 6, "h100_sxm"))
    assert plan.best is None and plan.verdict is None and plan.infeasible is not None
    assert "7 GPUs, but there are 6" in plan.infeasible.reason


def test_routing_of_another_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="8 experts per layer, but small has 16"):
        recommend(problem(activation=uniform(8, 2)))


def test_what_is_explained_adds_up_and_never_beats_dependencies() -> None:
    plan = recommend(problem(4000.0, 30.0, 16), top_n=4)
    for one in (*plan.pools, *([plan.monolithic] if plan.monolithic else [])):
        step = step_estimate(plan.problem, one)
        assert step.tpot.seconds == pytest.approx(one.tpot_s, rel=1e-9)
        assert step.bound_s <= one.tpot_s * (1 + 1e-12)
        assert sum(part.seconds for part in step.whole.values()) == pytest.approx(one.tpot_s)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_baseline_decides_with_its_own_steps(name: str) -> None:
    planner: Planner = BaselinePlanner.of(name, problem(1.0, 60.0, 64))
    answer = planner.decide(3000.0)
    assert planner.name == name
    assert isinstance(answer, Deployment), answer
    assert answer.tokens_per_s == pytest.approx(3000.0, rel=1e-6)
    assert answer.gpus % {"sglang": 8, "sglang-dp": 8, "xdeepserve": 4}.get(name, 1) == 0
    assert (answer.kind == "monolithic") == (name in ("sglang", "sglang-dp", "monolithic"))
    assert answer.policy == CONFIGS[name].style.policy  # type: ignore[index]
    text = "\n".join(CONFIGS[name].lines())  # type: ignore[index]
    for field in dataclasses.fields(CONFIGS[name].style):  # type: ignore[index]
        assert f"{field.name}: " in text
    nothing = planner.decide(1e9)
    assert isinstance(nothing, Infeasible) and nothing.reason and nothing.nearest is not None


def test_janus_never_takes_more_gpus_than_the_pools_of_the_baselines() -> None:
    question = problem(1.0, 40.0, 32)
    for demand in (500.0, 8000.0):
        ours = BaselinePlanner.of("janus", question).decide(demand)
        theirs = BaselinePlanner.of("xdeepserve", question).decide(demand)
        assert isinstance(ours, Deployment) and isinstance(theirs, Deployment)
        assert ours.gpus <= theirs.gpus


def test_unknown_planners_are_refused() -> None:
    with pytest.raises(ConfigError, match="megascale-infer"):
        BaselinePlanner.of("vllm", problem())


@pytest.mark.parametrize(("batch", "shape"), [(64, "1A6E"), (256, "2A6E"), (512, "4A6E")])
def test_the_paper_calibration_takes_the_published_shapes_at_150_ms(batch: int, shape: str) -> None:
    oracle = calibrated(Oracle.build("deepseek-v2", "h100_sxm"), "paper")
    question = Problem(
        oracle=oracle,
        activation=lognormal(160, 6, ROUTING_SPREAD),
        lengths=RequestLengths(isl=16, osl=256),
        demand=Concurrency(batch),
        tpot_s=0.150,
        max_gpus=32,
        prefill="excluded",
    )
    found = PoolSearch(question, PoolStyle(slots=SLOTS, micro_batches=(1,))).cheapest()[0]
    assert found.shape == shape
    point = next(p for p in PUBLISHED if f"{p.num_attention}A{p.num_expert}E" == shape)
    assert found.tokens_per_s_per_gpu == pytest.approx(point.tokens_per_s_per_gpu, rel=0.08)


def test_the_paper_calibration_is_never_silent() -> None:
    honest = Oracle.build(small_model(), "h100_sxm")
    assert calibrated(honest, "honest") is honest and note("honest") == ""
    assert "paper calibration" in note("paper")
    with pytest.raises(ConfigError, match="honest, paper"):
        calibrated(honest, "hopeful")  # type: ignore[arg-type]

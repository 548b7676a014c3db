"""The oracle's answers: units, monotonicity, bounds, and numbers that one can compute by hand."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_moe.errors import ConfigError
from janus_moe.planner.latency import (
    LinkModel,
    NodeLayout,
    OpLaw,
    Oracle,
    StepLoad,
    device_names,
    device_profile,
    exchange_counts,
    model_names,
)
from janus_moe.planner.latency.coefficients import fitted_coefficients
from janus_moe.planner.latency.estimate import weakest
from janus_moe.planner.latency.step import LayerParts, dependency_bound, layer_seconds
from janus_moe.spec import EXCHANGE_PLANS, ExchangePlanName
from janus_moe.transport.exchange_plans import RowMessage, Topology, egate_plan

MODELS, DEVICES = st.sampled_from(model_names()), st.sampled_from(device_names())
seconds = st.floats(1e-9, 1.0)


def at(oracle: Oracle, **changes: float) -> float:
    """Seconds of a step of two pools."""
    load = {
        "batch": 64.0, "context": 500.0, "num_attention": 2.0, "num_expert": 6.0,
        "activated": 10.0, "micro_batches": 1.0,
    }  # fmt: skip
    return float(oracle.step_s(oracle.pools_load(**{**load, **changes})))  # type: ignore[arg-type]


@settings(deadline=None)
@given(MODELS, DEVICES, DEVICES, st.integers(1, 4096), st.floats(1, 2), st.integers(1, 4))
def test_more_work_never_takes_less_time(
    model: str, attention: str, expert: str, batch: int, more: float, micro_batches: int
) -> None:
    oracle = Oracle.build(model, attention, expert)
    base = at(oracle, batch=batch, micro_batches=micro_batches)
    for changes in ({"batch": batch * more}, {"context": 500 * more}, {"activated": 10 * more}):
        assert at(oracle, **{"batch": batch, "micro_batches": micro_batches, **changes}) >= base


@settings(deadline=None)
@given(
    st.lists(seconds, min_size=5, max_size=5),
    st.integers(1, 8),
    st.sampled_from(("pools", "monolithic")),
)
def test_no_overlap_beats_the_dependencies_or_the_busiest_side(
    parts: list[float], micro_batches: int, deployment: str
) -> None:
    names = ("attention", "shared", "dispatch", "experts", "combine")
    layer = LayerParts(**dict(zip(names, parts, strict=True)))
    took = float(layer_seconds(layer, micro_batches, deployment))  # type: ignore[arg-type]
    attention, shared, dispatch, experts, combine = parts
    path = attention + dispatch + experts + combine
    assert took >= path * (1 - 1e-12)
    assert (
        took >= micro_batches * max(attention + shared, experts) * (1 - 1e-12) or micro_batches == 1
    )
    assert took >= float(dependency_bound(layer, deployment)) * (1 - 1e-12)  # type: ignore[arg-type]


@settings(deadline=None)
@given(MODELS, DEVICES, st.integers(1, 2048), st.integers(1, 16), st.integers(1, 32))
def test_the_parts_of_a_step_sum_to_it(
    model: str, device: str, batch: int, num_attention: int, num_expert: int
) -> None:
    oracle = Oracle.build(model, device)
    step = oracle.step(oracle.pools_load(batch, 300, num_attention, num_expert, 4, micro_batches=2))
    assert sum(part.seconds for part in step.whole.values()) == pytest.approx(step.tpot.seconds)
    assert sum(row[2] for row in step.explain()) == pytest.approx(1)
    assert step.tpot.seconds >= step.bound_s * (1 - 1e-12)


def test_vectors_give_what_numbers_give() -> None:
    oracle = Oracle.build("deepseek-v2", "h100_sxm")
    batch, n_e = np.array([[1.0, 64, 512]]), np.array([[6.0], [12.0]])
    activated = np.array([[3.0, 12, 25], [2, 8, 14]])
    grid = oracle.step_s(oracle.pools_load(batch, 300, 2, n_e, activated))
    assert grid.shape == (2, 3)
    one = oracle.step(oracle.pools_load(512, 300, 2, 12, 14))
    assert grid[1, 2] == pytest.approx(one.tpot.seconds)


def test_reading_experts_takes_bytes_over_bandwidth() -> None:
    """24 experts of 47.2 MB at 3.35 TB/s are 338 us; kernels reach 60 to 100 % of that speed."""
    took = Oracle.build("deepseek-v2", "h100_sxm").moe_layer(24, 64).seconds
    assert 338e-6 < took < 338e-6 / 0.6


def test_quantised_experts_are_read_in_less_time() -> None:
    times = [
        Oracle.build("deepseek-v2", "b200_sxm", expert_weights=form).moe_layer(24, 64).seconds
        for form in ("bfloat16", "fp8", "mxfp4")
    ]
    assert times[0] > 1.5 * times[1] > 1.5**2 * times[2]


def test_ping_pong_reads_experts_again_and_hides_attention() -> None:
    oracle = Oracle.build("deepseek-v2", "h100_sxm")
    once = oracle.step(oracle.pools_load(512, 300, 2, 6, 26))
    twice = oracle.step(oracle.pools_load(512, 300, 2, 6, 26, micro_batches=2))
    parts = {name: part.seconds for name, part in once.layer.items()}
    assert twice.tpot.seconds > 59 * 2 * 0.9 * parts["experts"]


def test_an_unused_part_does_not_weaken_the_estimate() -> None:
    assert weakest(["measured", "interpolated"]) == "interpolated"
    assert weakest(["measured", "roofline", "interpolated"]) == "roofline"
    assert weakest([]) == "measured"


def test_a_law_adds_its_floor_to_the_larger_of_memory_and_arithmetic() -> None:
    law = OpLaw(floor_s=1e-5, s_per_byte=1e-12, s_per_flop=1e-14, s_per_unit=1e-6, p=64)
    assert float(law.seconds(0, 0)) == pytest.approx(1e-5)
    assert float(law.seconds(1e9, 0)) == pytest.approx(1e-5 + 1e-3)
    assert float(law.seconds(1e9, 1e13, units=2)) == pytest.approx(1e-5 + 1e-1 + 2e-6)


def test_with_p_of_1_nothing_overlaps() -> None:
    law = OpLaw(floor_s=0, s_per_byte=1e-12, s_per_flop=1e-14, p=1)
    assert float(law.seconds(1e9, 1e11)) == pytest.approx(2e-3)


def test_wide_rows_are_read_at_their_own_speed() -> None:
    law = OpLaw(floor_s=0, s_per_byte=1e-12, s_per_flop=0, s_per_byte_wide=2e-12)
    took = law.seconds(np.array([1e9, 1e9]), 0.0, wide=np.array([False, True]))
    assert took.tolist() == pytest.approx([1e-3, 2e-3])


def test_a_law_with_a_negative_coefficient_is_refused() -> None:
    with pytest.raises(ConfigError, match="s_per_byte must be 0 or more, got -1"):
        OpLaw(floor_s=0, s_per_byte=-1, s_per_flop=0)


def test_a_load_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="num_expert must be above 0"):
        StepLoad(batch=1, context=1, num_attention=1, num_expert=0, activated=1)


def test_one_phase_counts_its_busiest_link() -> None:
    """3 attention and 2 expert instances on nodes of 4: one expert is alone on the second node."""
    layout = NodeLayout(num_attention=3, num_expert=2, gpus_per_node=4)
    dispatch, combine = exchange_counts(layout, 30, 100, 4, plan="1pc")
    assert (dispatch.inter_messages, dispatch.inter_bytes) == (3, 30 * 200)
    assert (dispatch.intra_messages, dispatch.intra_bytes) == (1, 10 * 200)
    assert combine.inter_bytes == 30 * 400


def test_a_plan_without_a_price_is_refused() -> None:
    layout = NodeLayout(num_attention=2, num_expert=6, gpus_per_node=8)
    with pytest.raises(ConfigError, match="no exchange plan '3pc' has a price"):
        exchange_counts(layout, 64, 1000, 6, plan="3pc")  # type: ignore[arg-type]


@pytest.mark.parametrize("plan", EXCHANGE_PLANS)
def test_nothing_leaves_a_node_that_holds_all(plan: ExchangePlanName) -> None:
    layout = NodeLayout(num_attention=2, num_expert=6, gpus_per_node=8)
    for counts in exchange_counts(layout, 64, 1000, 6, plan=plan):
        assert (counts.inter_hops, counts.inter_messages, counts.inter_bytes) == (0, 0, 0)
        assert float(np.asarray(counts.intra_bytes)) > 0


LINKS = LinkModel(
    intra_latency_s=1e-6,
    intra_message_s=2e-6,
    intra_s_per_byte=1e-9,
    inter_latency_s=10e-6,
    inter_message_s=3e-6,
    inter_s_per_byte=5e-9,
    gpus_per_node=4,
)


def test_an_exchange_over_both_kinds_of_links_worked_by_hand() -> None:
    """3 attention and 2 expert instances on nodes of 4 send 10 rows of 200 bytes each."""
    layout = NodeLayout(num_attention=3, num_expert=2, gpus_per_node=4)
    dispatch, _ = exchange_counts(layout, 30, 100, 4, plan="1pc")
    # Inside the node, an attention instance to the near expert instance, in microseconds:
    #   1 latency + 1 message x 2 + 2,000 bytes x 0.001                          =  5
    # To the expert instance that is alone on the other node:
    #   10 latency + 3 messages x 3 + 6,000 bytes x 0.005                        = 49
    assert float(LINKS.seconds(dispatch)) == pytest.approx(54e-6)
    # A bucket lets the first 1,000 bytes between nodes pass at once: 1,000 x 0.005 = 5 less.
    bursty = replace(LINKS, inter_burst_bytes=1000)
    assert float(bursty.seconds(dispatch)) == pytest.approx(49e-6)
    # Processors that all share spend 1 on each of the 3 messages and 0.001 on each of their bytes:
    # 3 + 6 more.
    shared = replace(LINKS, shared_message_s=1e-6, shared_s_per_byte=1e-9)
    counts = replace(dispatch, total_messages=3, total_bytes=6000)
    assert float(shared.seconds(counts)) == pytest.approx(63e-6)


@pytest.mark.parametrize("shape", [(1, 3), (2, 2), (4, 4), (4, 8), (8, 4), (12, 4)])
def test_an_exchange_takes_what_its_busiest_instance_spends_on_its_messages(
    shape: tuple[int, int],
) -> None:
    """Every message between every pair is walked; both pools are on one node or on nodes of their
    own, so that all links are of one kind."""
    attention, expert = shape
    near = attention + expert <= 4
    latency, message, byte = (1e-6, 2e-6, 1e-9) if near else (10e-6, 3e-6, 5e-9)
    layout = NodeLayout(num_attention=attention, num_expert=expert, gpus_per_node=4)
    dispatch, combine = exchange_counts(layout, 7 * attention, 100, 4, plan="1pc")
    for counts, row_bytes in ((dispatch, 200), (combine, 400)):
        spent: defaultdict[str, float] = defaultdict(float)
        for source in range(attention):
            for target in range(expert):
                for end in (f"attention {source}", f"expert {target}"):
                    spent[end] += message + 7 * row_bytes * byte
        assert float(LINKS.seconds(counts)) == pytest.approx(latency + max(spent.values()))


def test_devices_of_different_kinds_meet_between_nodes() -> None:
    oracle = Oracle.build("deepseek-v2", "h100_sxm", "l40s")
    load = oracle.pools_load(64, 300, 2, 6, 10)
    same = Oracle.build("deepseek-v2", "h100_sxm").pools_load(64, 300, 2, 6, 10)
    assert np.all(np.asarray(load.dispatch_s) > same.dispatch_s)


@pytest.mark.parametrize("device", ["h100_sxm", "h200_sxm"])
def test_fitted_laws_say_how_far_off_they_are(device: str) -> None:
    laws = fitted_coefficients(device).laws
    assert {"gemm.bfloat16", "gqa.bfloat16", "mla.bfloat16", "moe.bfloat16", "moe.fp8"} <= set(laws)
    for law in laws.values():
        assert law.confidence == "interpolated"
        assert 0 < law.errors["median"] <= 0.15 and law.errors["median"] <= law.errors["p90"]


def test_fitted_laws_read_no_faster_than_the_memory() -> None:
    for device in ("h100_sxm", "h200_sxm"):
        law = fitted_coefficients(device).laws["moe.bfloat16"]
        assert 1 / law.s_per_byte < device_profile(device).memory_bytes_per_s


def test_a_format_without_measurements_is_roofline() -> None:
    assert Oracle.build("deepseek-v2", "h200_sxm").moe_layer(10, 60).confidence == "interpolated"
    unmeasured = Oracle.build("deepseek-v2", "h200_sxm", expert_weights="int8")
    assert unmeasured.moe_layer(10, 60).confidence == "roofline"
    assert Oracle.build("deepseek-v2", "b200_sxm").lm_head(10).confidence == "roofline"


def busiest(messages: Iterable[RowMessage], node_of: list[int], inter: bool) -> tuple[int, int]:
    """(messages, rows) of the instance that sends or gets the most of them."""
    count: Counter[tuple[str, int]] = Counter()
    rows: Counter[tuple[str, int]] = Counter()
    for message in messages:
        if (node_of[message.source] != node_of[message.target]) == inter:
            for end in (("from", message.source), ("to", message.target)):
                count[end] += 1
                rows[end] += message.num_rows
    return max(count.values(), default=0), max(rows.values(), default=0)


@pytest.mark.parametrize("plan", ["1pc", "2pc-direct", "2pc-sharded"])
@pytest.mark.parametrize("shape", [(4, 4), (4, 8), (8, 8), (12, 20)])
def test_closed_forms_are_the_busiest_link_of_the_transports_messages(
    plan: str, shape: tuple[int, int]
) -> None:
    """Nodes of 4, all full; 2 rows of each attention instance."""
    attention, expert = shape
    node_of = [rank // 4 for rank in range(attention + expert)]
    topology = Topology(tuple(node_of[:attention]), tuple(node_of[attention:]))
    real = egate_plan(plan, topology, (2,) * attention)
    layout = NodeLayout(num_attention=attention, num_expert=expert, gpus_per_node=4)
    dispatch, _ = exchange_counts(layout, 2 * attention, 50, 4, plan=plan)  # type: ignore[arg-type]
    found = (
        float(np.asarray(dispatch.inter_messages)),
        float(np.asarray(dispatch.inter_bytes)) / 100,
    )
    assert found == pytest.approx(busiest(real.dispatches, node_of, inter=True))
    if plan == "2pc-sharded":
        _, rows = busiest(real.dispatches, node_of, inter=False)
        assert float(np.asarray(dispatch.intra_bytes)) / 100 == pytest.approx(rows)

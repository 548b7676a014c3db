"""The closed form r*: what the linear model maximises, and beside the search."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.planner.search.models import problem
from tests.planner.search.test_search import SMALL

from janus_moe.planner.search.ratio import LinearTimes, closed_form, cross_check, linear_times
from janus_moe.planner.search.search import PoolSearch

seconds = st.floats(1e-5, 1e-2)


@given(
    attention=seconds,
    communication=seconds,
    alpha=st.floats(1e-8, 1e-4),
    beta=seconds,
    batch=st.floats(1, 512),
    group=st.floats(1, 32),
)
def test_no_other_ratio_has_more_throughput_per_gpu(
    attention: float, communication: float, alpha: float, beta: float, batch: float, group: float
) -> None:
    times = LinearTimes(
        attention_s=attention,
        communication_s=communication,
        alpha_f=alpha,
        beta_f=beta,
        batch=batch,
        group=group,
    )
    ratio = closed_form(times)
    best = times.throughput(ratio.r)
    for factor in np.geomspace(0.05, 20, 41):
        assert times.throughput(ratio.r * factor) <= best * (1 + 1e-9)


def test_the_regime_names_what_decides() -> None:
    base = {"alpha_f": 1e-6, "beta_f": 1e-4, "batch": 100.0}
    slow_attention = LinearTimes(attention_s=1e-2, communication_s=1e-5, **base)
    slow_links = LinearTimes(attention_s=1e-5, communication_s=1e-2, **base)
    slow_experts = LinearTimes(attention_s=1e-5, communication_s=1e-5, **base)
    assert closed_form(slow_attention).regime == "attention"
    assert closed_form(slow_links).regime == "communication"
    assert closed_form(slow_experts).regime == "experts"
    assert closed_form(slow_experts).r == pytest.approx(math.sqrt(1e-4 / 1e-4))


def test_experts_that_cost_the_same_for_any_batch_have_no_largest_ratio() -> None:
    flat = LinearTimes(attention_s=1e-3, communication_s=1e-4, alpha_f=0.0, beta_f=1e-4, batch=9.0)
    assert math.isinf(closed_form(flat).r)


def test_longer_contexts_lean_towards_attention_in_both() -> None:
    """The search and the closed form move the same way."""
    shares, ratios = [], []
    for isl in (512, 60_000):
        question = problem(2000.0, 60.0, 12, isl=isl, prefill="excluded")
        found = PoolSearch(question, SMALL).cheapest()[0]
        shares.append(found.num_attention / found.num_expert)
        ratio = closed_form(linear_times(question, found))
        ratios.append(ratio.r_attention)
        assert "r_peak" in cross_check(question, found) or math.isinf(ratio.r)
    assert shares[1] >= shares[0] and ratios[1] > ratios[0]

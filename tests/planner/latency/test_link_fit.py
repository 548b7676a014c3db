"""A model of links from measured exchanges: exact where times are, honest about its errors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from janus_moe.errors import ConfigError
from janus_moe.planner.latency.link_fit import TERMS, MeasuredExchange, exchange_seconds, fit_links
from janus_moe.planner.latency.links import LinkModel
from janus_moe.spec import EXCHANGE_PLANS
from janus_moe.transport.exchange_plans import Topology, egate_plan
from janus_moe.transport.exchange_plans.pricing import priced_counts
from janus_moe.transport.exchange_plans.program import RowBytes

TOPOLOGIES = (
    Topology((0, 0), (1, 1)),
    Topology((0, 0), (1, 1, 2, 2)),
    Topology((0, 0, 1, 1), (2, 2, 3)),
)
TRUE = LinkModel(
    intra_latency_s=20e-6,
    intra_message_s=5e-6,
    intra_s_per_byte=2e-10,
    inter_latency_s=60e-6,
    inter_message_s=10e-6,
    inter_s_per_byte=8e-9,
    shared_message_s=3e-6,
    shared_s_per_byte=1e-10,
    gpus_per_node=1,
)


def exchanges(truth: LinkModel, noise: float = 0.0) -> list[MeasuredExchange]:
    rng = np.random.default_rng(0)
    found = []
    for topology in TOPOLOGIES:
        for plan in EXCHANGE_PLANS:
            for batch in (4, 32, 256):
                each = (
                    batch // topology.num_attention_instances,
                ) * topology.num_attention_instances
                counts = priced_counts(egate_plan(plan, topology, each), RowBytes(2048, 4096))
                seconds = exchange_seconds(truth, counts) * float(rng.uniform(1, 1 + noise))
                found.append(MeasuredExchange(counts=counts, seconds=seconds, group=str(batch)))
    return found


def test_exact_times_give_a_model_that_predicts_other_sizes() -> None:
    fit = fit_links(exchanges(TRUE))
    assert fit.p90_error < 1e-3
    for batch, plan in ((64, "2pc-relay"), (1024, "1pc")):
        exchange = egate_plan(plan, TOPOLOGIES[2], (batch,) * 4)
        counts = priced_counts(exchange, RowBytes(2048, 4096))
        expected = exchange_seconds(TRUE, counts)
        assert exchange_seconds(fit.model, counts) == pytest.approx(expected, rel=0.01)


def test_coefficients_are_never_negative_and_noise_shows_in_the_errors() -> None:
    fit = fit_links(exchanges(TRUE, noise=0.3))
    assert all(getattr(fit.model, name) >= 0 for name in TERMS.values())
    assert 0.01 < fit.median_error < 0.3
    assert fit.median_error <= fit.p90_error


def test_links_that_cost_nothing_get_nothing() -> None:
    fit = fit_links(exchanges(replace(TRUE, shared_message_s=0.0, shared_s_per_byte=0.0)))
    assert fit.model.shared_s_per_byte < 1e-12


def test_too_few_or_impossible_measurements_are_refused() -> None:
    some = exchanges(TRUE)
    with pytest.raises(ConfigError, match="at least 2"):
        fit_links([one for one in some if one.group == "4"])
    with pytest.raises(ConfigError, match="above 0"):
        fit_links([*some, replace(some[0], seconds=0.0)])

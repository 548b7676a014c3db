"""Routing statistics: counts equal plain ones, the window slides, probabilities agree."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from janus_moe.errors import ConfigError
from janus_moe.policy.statistics import RoutingWindow


def test_counts_vs_plain_ones() -> None:
    rng = np.random.default_rng(0)
    window = RoutingWindow(2, 10, coactivation_stride=1)
    tokens, active, pairs = np.zeros((2, 10)), np.zeros((2, 10)), np.zeros((2, 10, 10))
    num_tokens, num_batches = [0, 0], [0, 0]
    for _ in range(60):
        layer = int(rng.integers(2))
        ids = rng.random((int(rng.integers(0, 6)), 10)).argsort(axis=1)[:, :3].astype(np.int32)
        ids[rng.random(len(ids)) < 0.2] = -1
        window.record(layer, ids)
        real = ids[ids[:, 0] >= 0].tolist()
        num_tokens[layer] += len(real)
        num_batches[layer] += bool(real)
        active[layer, list(set(itertools.chain(*real)))] += 1
        for token in real:
            tokens[layer, token] += 1
            for one, other in itertools.permutations(token, 2):
                pairs[layer, one, other] += 1
    seen = window.read()
    assert seen.num_tokens.tolist() == num_tokens and seen.num_batches.tolist() == num_batches
    assert seen.tokens.tolist() == tokens.tolist()
    assert seen.active_batches.tolist() == active.tolist()
    assert seen.coactivation.tolist() == pairs.tolist()
    assert seen.active_share() == pytest.approx(active / np.array(num_batches)[:, None])


def test_the_window_forgets_bucket_by_bucket() -> None:
    window = RoutingWindow(1, 4, window_batches=8, buckets=4)
    covered = []
    for batch in range(40):
        window.record(0, np.array([[0 if batch < 20 else 1, 2]], np.int32))
        covered.append(int(window.read().num_batches[0]))
    assert covered[:8] == list(range(1, 9))
    assert set(covered[8:]) == {7, 8}
    seen = window.read()
    assert seen.tokens[0].tolist() == [0, 8, 8, 0]
    assert seen.coactivation[0, 0, 2] == 0 < seen.coactivation[0, 1, 2]


def test_sampled_pairs_and_none() -> None:
    ids = np.array([[0, 1], [2, 3], [0, 1], [2, 3]], np.int32)
    sampled = RoutingWindow(1, 4, coactivation_stride=2)
    sampled.record(0, ids)
    assert sampled.read().coactivation[0].nonzero()[0].tolist() == [0, 1]
    none = RoutingWindow(1, 4, coactivation_stride=0)
    none.record(0, ids)
    assert none.read().coactivation.size == 0 and none.read().tokens.sum() == 8


def test_probability_from_token_counts_is_near_the_measured_one() -> None:
    rng = np.random.default_rng(0)
    popularity = rng.normal(0, 1, 64)
    window = RoutingWindow(1, 64, window_batches=400)
    for _ in range(400):
        ids = np.argsort(-(popularity + rng.gumbel(size=(32, 64))), axis=1)[:, :4]
        window.record(0, ids.astype(np.int32))
    seen = window.read()
    assert np.abs(seen.probability(32) - seen.active_share()).max() < 0.08
    assert np.abs(seen.probability(32) - seen.active_share()).mean() < 0.02


def test_bad_ids_leave_no_trace() -> None:
    window = RoutingWindow(1, 4)
    for wrong in (4, -2):
        with pytest.raises(ValueError, match=r"layer 0 must run from 0 to 3, .* got"):
            window.record(0, np.array([[1, 2], [3, wrong]], np.int32))
    assert window.read().num_batches.sum() == window.read().tokens.sum() == 0


def test_impossible_windows_are_refused() -> None:
    with pytest.raises(ConfigError, match="4 buckets, 3 batches"):
        RoutingWindow(1, 4, window_batches=3)
    with pytest.raises(ConfigError, match="0 or more, got -1"):
        RoutingWindow(1, 4, coactivation_stride=-1)

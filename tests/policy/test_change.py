"""Claims about dating a change of routing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from janus_moe.policy.change import TOLERANCE, buckets_to_keep
from janus_moe.policy.statistics import RoutingWindow
from janus_moe.policy.synthetic import SyntheticRouter

EXPERTS, TOP_K, BUCKET_BATCHES, BATCH = 64, 4, 128, 16
FIRST, SECOND = (0, 1, 2, 3), (8, 9, 10, 11)


def counts(topics: Sequence[Sequence[int]], num_layers: int = 2) -> NDArray[np.int64]:
    """[buckets, layers, experts] of buckets whose tokens are about these topics."""
    rng = np.random.default_rng(5)
    tokens = BUCKET_BATCHES * BATCH

    def bucket(about: Sequence[int], layer: int) -> NDArray[np.int64]:
        ids = SyntheticRouter("topics", EXPERTS, TOP_K, layer, about).batch(tokens, rng)
        return np.bincount(ids.ravel(), minlength=EXPERTS)

    return np.array([[bucket(about, layer) for layer in range(num_layers)] for about in topics])


@pytest.mark.parametrize("newest", range(1, 8))
def test_the_change_is_dated_to_the_bucket(newest: int) -> None:
    tokens = counts([SECOND] * newest + [FIRST] * (8 - newest))
    assert buckets_to_keep(tokens, np.full(8, BUCKET_BATCHES)) == newest


def test_equal_routing_is_kept_however_few_tokens() -> None:
    rng = np.random.default_rng(6)
    shares = rng.dirichlet(np.full(EXPERTS, 0.3), size=3)
    for total in (64, 512, 4096, 65536):
        tokens = rng.multinomial(total, shares, size=(8, 3))
        assert buckets_to_keep(tokens, np.full(8, BUCKET_BATCHES)) == 8


def test_small_differences_are_tolerated() -> None:
    even = np.full(EXPERTS, 10_000)
    for moved, keep in ((0.9 * TOLERANCE, 2), (1.4 * TOLERANCE, 1)):
        change = np.where(np.arange(EXPERTS) % 2, 1 + 2 * moved, 1 - 2 * moved)
        tokens = np.array([[even * change], [even]]).astype(np.int64)
        assert buckets_to_keep(tokens, np.full(2, BUCKET_BATCHES)) == keep


def test_a_few_batches_change_nothing_yet() -> None:
    tokens = counts([SECOND, FIRST])
    assert buckets_to_keep(tokens, np.array([31, BUCKET_BATCHES])) == 2
    assert buckets_to_keep(tokens, np.array([32, BUCKET_BATCHES])) == 1
    assert buckets_to_keep(counts([SECOND]), np.array([BUCKET_BATCHES])) == 1


def test_a_window_forgets_the_first_topic() -> None:
    window, rng = RoutingWindow(2, EXPERTS, 512, buckets=8), np.random.default_rng(7)
    routers = {
        about: SyntheticRouter("topics", EXPERTS, TOP_K, 0, about) for about in (FIRST, SECOND)
    }

    def record(about: tuple[int, int, int, int], num_batches: int) -> None:
        for _ in range(num_batches):
            for layer in range(2):
                window.record(layer, routers[about].batch(BATCH, rng))

    record(FIRST, 600)
    assert not window.forget_change()
    kept = window.read().num_batches[0]
    assert kept > 400
    record(SECOND, 150)
    assert window.forget_change()
    seen = window.read()
    assert 100 <= seen.num_batches[0] <= 150 and seen.num_tokens[1] == BATCH * seen.num_batches[1]
    fresh = RoutingWindow(2, EXPERTS, 512, buckets=8)
    for _ in range(150):
        fresh.record(0, routers[SECOND].batch(BATCH, rng))
    now, then = seen.tokens[0] / seen.tokens[0].sum(), fresh.read().tokens[0]
    assert np.abs(now - then / then.sum()).sum() / 2 < 0.1
    assert not window.forget_change()
    record(SECOND, 600)
    assert window.read().num_batches[0] > 400

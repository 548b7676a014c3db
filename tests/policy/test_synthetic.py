"""Synthetic routing: valid ids, repeatable, and skewed the way its name says."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from janus_moe.errors import ConfigError
from janus_moe.policy.synthetic import SyntheticKind, SyntheticRouter


@pytest.mark.parametrize("kind", get_args(SyntheticKind))
def test_batches_are_distinct_ids_and_repeatable(kind: SyntheticKind) -> None:
    router = SyntheticRouter(kind, 40, 6, seed=3)
    ids = router.batch(50, np.random.default_rng(1))
    assert ids.shape == (50, 6) and ids.dtype == np.int32
    assert ids.min() >= 0 and ids.max() < 40
    assert all(len(set(token)) == 6 for token in ids.tolist())
    again = SyntheticRouter(kind, 40, 6, seed=3).batch(50, np.random.default_rng(1))
    assert (again == ids).all()
    assert router.batch(0, np.random.default_rng(1)).shape == (0, 6)


def test_skew_lowers_the_number_of_activated_experts() -> None:
    rng = np.random.default_rng(0)

    def activated(kind: SyntheticKind) -> float:
        router = SyntheticRouter(kind, 256, 8)
        return float(np.mean([len(np.unique(router.batch(64, rng))) for _ in range(20)]))

    assert activated("uniform") == pytest.approx(223, abs=3)
    assert activated("uniform") > activated("topics") > activated("zipf")
    assert activated("topics") > activated("bursty")


def test_topics_can_be_restricted() -> None:
    rng = np.random.default_rng(0)
    halves = [SyntheticRouter("topics", 128, 4, topics=range(start, start + 8)) for start in (0, 8)]
    shares = [np.bincount(half.batch(4000, rng).ravel(), minlength=128) for half in halves]
    assert np.corrcoef(shares[0], shares[1])[0, 1] < 0.6


def test_impossible_routers_are_refused() -> None:
    with pytest.raises(ConfigError, match="one of uniform, zipf, topics, bursty; got 'normal'"):
        SyntheticRouter("normal", 8, 2)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="from 1 to 8 experts, got 9"):
        SyntheticRouter("uniform", 8, 9)
    with pytest.raises(ConfigError, match=r"some of 0 to 15, got \[16\]"):
        SyntheticRouter("topics", 8, 2, topics=[16])

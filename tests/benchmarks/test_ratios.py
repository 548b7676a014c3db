"""Claims about the ratio of things that were measured in turns."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks.support.ratios import paired_ratio


def test_what_slows_both_of_a_pair_does_not_show() -> None:
    slow = np.random.default_rng(0).lognormal(0.0, 1.0, 30)
    found = paired_ratio((1.2 * slow).tolist(), slow.tolist())
    assert (found.median, found.low, found.high) == pytest.approx((1.2, 1.2, 1.2))
    assert found.num_pairs == 30


def test_the_interval_holds_the_true_median_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    inside = 0
    for seed in range(100):
        noise = rng.lognormal(0.0, 0.2, 40)
        found = paired_ratio((1.1 * noise).tolist(), [1.0] * 40, seed)
        inside += found.low <= 1.1 <= found.high
    assert 88 <= inside <= 100


def test_equal_seeds_give_equal_bounds() -> None:
    ours, theirs = [1.0, 2.0, 4.0, 3.0], [1.0, 1.0, 3.0, 2.0]
    assert paired_ratio(ours, theirs, 7) == paired_ratio(ours, theirs, 7)


@pytest.mark.parametrize(("ours", "theirs"), [([], []), ([1.0], [1.0, 2.0])])
def test_pairs_need_both_sides(ours: list[float], theirs: list[float]) -> None:
    with pytest.raises(ValueError, match="one value of each side"):
        paired_ratio(ours, theirs)

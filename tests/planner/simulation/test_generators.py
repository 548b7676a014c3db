"""Claims about synthetic workloads."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from janus_moe.errors import ConfigError
from janus_moe.planner.simulation.generators import (
    ArrivalProcess,
    Lengths,
    diurnal_profile,
    generate,
)


@pytest.mark.parametrize("arrivals", get_args(ArrivalProcess))
def test_the_mean_rate_is_met_and_seeds_repeat(arrivals: ArrivalProcess) -> None:
    first = generate(arrivals, rate=5.0, duration_s=20_000.0, seed=3)
    again = generate(arrivals, rate=5.0, duration_s=20_000.0, seed=3)
    other = generate(arrivals, rate=5.0, duration_s=20_000.0, seed=4)
    assert first.num_requests == pytest.approx(100_000, rel=0.05)
    assert np.array_equal(first.arrival_s, again.arrival_s)
    assert not np.array_equal(first.arrival_s[:100], other.arrival_s[:100])
    assert first.duration_s < 20_000.0
    assert set(first.prompt_tokens) == {16} and set(first.output_tokens) == {256}


@pytest.mark.parametrize("cv", [0.5, 1.0, 4.0])
def test_gamma_gaps_have_the_variation_asked_for(cv: float) -> None:
    gaps = np.diff(generate("gamma", 10.0, 20_000.0, seed=1, cv=cv).arrival_s)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05)


@pytest.mark.parametrize("days", [1, 7])
def test_a_diurnal_profile_has_the_peak_asked_for(days: int) -> None:
    profile = diurnal_profile(days * 86_400.0, 7.5, np.random.default_rng(5))
    assert profile.max() == pytest.approx(7.5, rel=1e-3)
    assert profile.mean() == pytest.approx(1.0)
    assert profile.min() >= 0.0


def test_arrivals_follow_the_profile() -> None:
    profile = diurnal_profile(86_400.0, 7.5, np.random.default_rng(11))
    counted = generate("diurnal", 20.0, 86_400.0, seed=11).rate(900.0) / 20.0
    assert counted == pytest.approx(profile.reshape(-1, 30).mean(axis=1), abs=0.15)


def test_lognormal_lengths_have_mean_and_variation() -> None:
    tokens = Lengths(mean=256, cv=1.2).sample(200_000, np.random.default_rng(0))
    assert tokens.mean() == pytest.approx(256, rel=0.02)
    assert tokens.std() / tokens.mean() == pytest.approx(1.2, rel=0.05)
    assert tokens.min() >= 1


def test_what_cannot_be_generated_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"-1 requests/s"):
        generate("poisson", -1, 10)
    with pytest.raises(ConfigError, match="requests in all"):
        generate("poisson", 1e9, 1e9)
    with pytest.raises(ConfigError, match="poisson, gamma, diurnal"):
        generate("weekly", 1, 10)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="peak of 500 times"):
        generate("diurnal", 1, 86_400, peak_ratio=500)
    with pytest.raises(ConfigError, match="mean of at least 1"):
        Lengths(mean=0)

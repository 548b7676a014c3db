"""Synthetic workloads, named as such: for questions that no recorded trace answers.

poisson   arrivals without memory
gamma     gaps from a gamma distribution; a coefficient of variation above 1 makes bursts
diurnal   a daily cycle with bursts of minutes; the highest is `peak_ratio` times the mean
          rate (the one-week production trace of arXiv 2512.13525, figure 4, has 7.5)

Equal arguments and seed give equal requests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from janus_moe.errors import ConfigError
from janus_moe.planner.simulation.workload import RequestTrace

ArrivalProcess = Literal["poisson", "gamma", "diurnal"]

DAY_S = 86_400.0
GRID_S = 30.0  # resolution of a diurnal profile
CYCLE_DEPTH = 0.6  # the cycle alone goes from 0.4 to 1.6 times its mean
BURSTS_PER_DAY = 6
MAX_REQUESTS = 50_000_000


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Token counts of prompts or outputs.

    mean: of the distribution, before rounding.
    cv: standard deviation over mean; 0: all the same, else lognormal.
    """

    mean: float
    cv: float = 0.0

    def __post_init__(self) -> None:
        if not (1 <= self.mean < 1e9 and 0 <= self.cv < 100):
            raise ConfigError(
                f"lengths need a mean of at least 1 token and a variation from 0 to 100, got mean "
                f"{self.mean} and cv {self.cv}"
            )

    def sample(self, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """[count] tokens, at least 1."""
        if self.cv == 0:
            return np.full(count, round(self.mean), np.int64)
        variance = math.log1p(self.cv**2)
        drawn = rng.lognormal(math.log(self.mean) - variance / 2, math.sqrt(variance), count)
        return np.maximum(np.rint(drawn), 1).astype(np.int64)


PAPER_PROMPTS, PAPER_OUTPUTS = Lengths(mean=16), Lengths(mean=256)  # arXiv 2512.13525, section 7


def generate(
    arrivals: ArrivalProcess,
    rate: float,
    duration_s: float,
    seed: int = 0,
    prompts: Lengths = PAPER_PROMPTS,
    outputs: Lengths = PAPER_OUTPUTS,
    cv: float = 3.0,
    peak_ratio: float = 7.5,
) -> RequestTrace:
    """A synthetic trace of one of the kinds above.

    rate: mean requests per second.
    cv: of gamma's gaps.
    peak_ratio: of diurnal's profile.
    """
    if not (rate > 0 and duration_s > 0 and 1 <= rate * duration_s <= MAX_REQUESTS):
        raise ConfigError(
            f"{rate} requests/s for {duration_s} s; expected above 0, and from 1 to "
            f"{MAX_REQUESTS} requests in all"
        )
    rng = np.random.default_rng(seed)
    match arrivals:
        case "poisson":
            arrival = _gaps(rng, rate, duration_s, 1.0)
        case "gamma":
            arrival = _gaps(rng, rate, duration_s, cv)
        case "diurnal":
            arrival = _from_profile(rng, rate * diurnal_profile(duration_s, peak_ratio, rng))
        case _:
            names = ", ".join(get_args(ArrivalProcess))
            raise ConfigError(f"synthetic arrivals must be one of {names}; got {arrivals!r}")
    arrival = arrival[arrival < duration_s]
    return RequestTrace(
        name=f"synthetic {arrivals}",
        arrival_s=arrival,
        prompt_tokens=prompts.sample(len(arrival), rng),
        output_tokens=outputs.sample(len(arrival), rng),
    )


def _gaps(
    rng: np.random.Generator, rate: float, duration_s: float, cv: float
) -> NDArray[np.float64]:
    """Arrival times with gamma gaps of mean 1 / rate; cv = 1 is the Poisson process."""
    if not 0.01 <= cv <= 100:
        raise ConfigError(f"the variation of gaps must be from 0.01 to 100, got {cv}")
    shape = 1.0 / cv**2
    expected = rate * duration_s
    at_once = int(expected + 4 * cv * math.sqrt(expected)) + 16
    arrival = np.zeros(0)
    while not len(arrival) or arrival[-1] < duration_s:
        gaps = rng.gamma(shape, 1.0 / (rate * shape), at_once)
        arrival = np.append(arrival, (arrival[-1] if len(arrival) else 0.0) + np.cumsum(gaps))
    return arrival


def diurnal_profile(
    duration_s: float, peak_ratio: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """[duration / 30 s] rate over its mean: mean 1, maximum `peak_ratio`.

    A daily cosine plus bursts. The bursts' common height is what gives the peak; they are short,
    so the mean moves little.
    """
    time = np.arange(0.0, max(2, math.ceil(duration_s / GRID_S))) * GRID_S
    cycle = 1.0 - CYCLE_DEPTH * np.cos(2 * np.pi * (time / DAY_S - 0.125))  # low at 3 o'clock
    bursts = _bursts(time, duration_s, peak_ratio, rng)
    lowest, highest = _peak(cycle), _peak(bursts)
    if not lowest <= peak_ratio <= highest:
        raise ConfigError(
            f"a peak of {peak_ratio} times the mean is not possible over {duration_s:g} s; from "
            f"{lowest:.1f} to {highest:.1f} is"
        )
    low, high = 0.0, 1.0
    for _ in range(60):
        share = (low + high) / 2
        mixed = (1 - share) * cycle + share * bursts
        low, high = (share, high) if _peak(mixed) < peak_ratio else (low, share)
    mixed = (1 - high) * cycle + high * bursts
    profile: NDArray[np.float64] = mixed / mixed.mean()
    return profile


def _bursts(
    time: NDArray[np.float64], duration_s: float, peak_ratio: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """[time] bursts of 5 to 20 minutes' deviation, all narrower if their peak is too low so; the
    highest is twice the second, three times the third, and so on."""
    count = max(1, round(BURSTS_PER_DAY * duration_s / DAY_S))
    centres = rng.uniform(0, duration_s, count)
    heights = 1.0 / rng.permutation(np.arange(1, count + 1))
    widths = np.minimum(np.exp(rng.uniform(math.log(300), math.log(1200), count)), duration_s / 20)
    while True:
        offsets = (time[:, None] - centres) / widths
        bursts: NDArray[np.float64] = np.exp(-0.5 * offsets**2) @ heights
        if widths.max() < 2 * GRID_S or _peak(bursts) > 1.2 * peak_ratio:
            return bursts
        widths = widths * 0.7


def _peak(profile: NDArray[np.float64]) -> float:
    return float(profile.max() / profile.mean())


def _from_profile(rng: np.random.Generator, rates: NDArray[np.float64]) -> NDArray[np.float64]:
    """Arrivals of the Poisson process whose rate in grid cell i is `rates[i]`."""
    expected = np.concatenate(([0.0], np.cumsum(rates * GRID_S)))
    count = rng.poisson(expected[-1])
    edges = np.arange(len(expected)) * GRID_S
    drawn = np.sort(rng.uniform(0, expected[-1], count))
    arrival: NDArray[np.float64] = np.interp(drawn, expected, edges)
    return arrival

"""Which exchange plan a batch gets: predicted times, corrected by measured ones, with hysteresis.

One decision per batch bucket (powers of two of the tokens of all attention instances). All
functions are pure and plans are numbers, lowest first where times are equal. How times are
predicted (`perf`), who decides for all instances and how they learn of it (`transport`) is not
known here. docs/transport.md has the rule as pseudo-code.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from janus_moe.errors import ConfigError

NUM_BUCKETS = 16


@dataclass(frozen=True, slots=True)
class ChoiceRule:
    """gain: share of the time that another plan must promise to save, `patience` steps in a row.

    smoothing: weight of the latest measurement in the moving average.
    trials: steps that a plan is tried for before it is judged by its own times.
    reach: plans expected to take longer than the best by this factor are not tried.
    memory: steps of the bucket after which a measurement has lost 63 % of its weight.
    """

    gain: float = 0.03
    patience: int = 5
    smoothing: float = 0.1
    trials: int = 5
    reach: float = 1.5
    memory: int = 2000

    def __post_init__(self) -> None:
        if not (0 <= self.gain < 1 and 0 < self.smoothing <= 1 and self.reach >= 1):
            raise ConfigError(f"gain in [0, 1), smoothing in (0, 1], reach 1 or more, got {self}")
        if min(self.patience, self.memory) < 1 or self.trials < 0:
            raise ConfigError(f"patience and memory 1 or more, trials 0 or more, got {self}")


@dataclass(frozen=True, slots=True)
class Measured:
    """Of one plan. ratio: moving average of measured over predicted time; at: latest step."""

    ratio: float = 1.0
    samples: int = 0
    at: int = 0


@dataclass(frozen=True, slots=True)
class Choice:
    """What is known and chosen for one bucket.

    current: the plan of the next step. favoured, streak: the plan that has promised enough for so
    many steps. trying: `current` is on trial. measured: [plans].
    """

    current: int
    measured: tuple[Measured, ...]
    step: int = 0
    favoured: int = -1
    streak: int = 0
    trying: bool = False


def bucket_of(tokens: int) -> int:
    """0 for up to 1 token, then 1 more for each power of two; the last takes all above."""
    return min(max(tokens - 1, 0).bit_length(), NUM_BUCKETS - 1)


def bucket_tokens(bucket: int) -> int:
    """The most tokens of a bucket."""
    return 1 << bucket


def first_choice(predicted: Sequence[float]) -> Choice:
    """The plan with the lowest prediction. predicted: [plans] seconds, inf: not to be used."""
    if not predicted or not min(predicted) < math.inf:
        raise ConfigError("no exchange plan to choose from")
    return Choice(_best(predicted), (Measured(),) * len(predicted))


def expected_times(choice: Choice, predicted: Sequence[float], rule: ChoiceRule) -> list[float]:
    """[plans] seconds: predictions times measured ratios.

    What was never or long ago measured is taken to be off like the current plan: what slows all
    plans alike changes no order.
    """
    common = choice.measured[choice.current].ratio
    times = []
    for seconds, seen in zip(predicted, choice.measured, strict=True):
        ratio = common + (seen.ratio - common) * _trust(seen, choice.step, rule)
        times.append(seconds * ratio)
    return times


def next_choice(
    choice: Choice, predicted: Sequence[float], seconds: float, rule: ChoiceRule
) -> Choice:
    """After a step of the bucket whose exchanges took `seconds` each under `choice.current`.

    A time that is not above 0 counts as none.
    """
    choice = replace(choice, step=choice.step + 1)
    if seconds > 0:
        choice = _measure(choice, seconds / predicted[choice.current], rule)
    times = expected_times(choice, predicted, rule)
    untried = [plan for plan in _within_reach(times, rule) if _is_new(choice, plan, rule)]
    if choice.current in untried or not seconds > 0:
        return replace(choice, favoured=-1, streak=0)
    if untried:
        plan = min(untried, key=lambda plan: times[plan])
        return replace(choice, current=plan, trying=True, favoured=-1, streak=0)
    best = _best(times)
    if choice.trying:
        return replace(choice, current=best, trying=False)
    if times[best] >= (1 - rule.gain) * times[choice.current]:
        return replace(choice, favoured=-1, streak=0)
    streak = choice.streak + 1 if choice.favoured == best else 1
    if streak < rule.patience:
        return replace(choice, favoured=best, streak=streak)
    return replace(choice, current=best, favoured=-1, streak=0)


def pack(plans: Iterable[int]) -> int:
    """The plans of all buckets in 32 bits, two each, so that they fit beside an announcement."""
    packed = 0
    for bucket, plan in enumerate(plans):
        if not 0 <= plan < 4 or bucket >= NUM_BUCKETS:
            raise ValueError(f"plan {plan} of bucket {bucket}; 2 bits for each of {NUM_BUCKETS}")
        packed |= plan << 2 * bucket
    return packed


def unpack(packed: int, tokens: int) -> int:
    """The plan of a step with so many tokens."""
    return packed >> 2 * bucket_of(tokens) & 3


def _measure(choice: Choice, ratio: float, rule: ChoiceRule) -> Choice:
    seen = choice.measured[choice.current]
    weight = max(rule.smoothing, 1 / (seen.samples + 1), 1 - _trust(seen, choice.step, rule))
    average = seen.ratio + weight * (ratio - seen.ratio)
    updated = Measured(average, seen.samples + 1, choice.step)
    before, after = choice.measured[: choice.current], choice.measured[choice.current + 1 :]
    return replace(choice, measured=(*before, updated, *after))


def _trust(seen: Measured, step: int, rule: ChoiceRule) -> float:
    """Weight of what was measured, from 1 (now) to 0 (long ago, or never)."""
    return math.exp(-(step - seen.at) / rule.memory) if seen.samples else 0.0


def _within_reach(times: Sequence[float], rule: ChoiceRule) -> list[int]:
    limit = rule.reach * min(times)
    return [plan for plan, seconds in enumerate(times) if seconds <= limit]


def _is_new(choice: Choice, plan: int, rule: ChoiceRule) -> bool:
    return choice.measured[plan].samples < rule.trials


def _best(times: Sequence[float]) -> int:
    return min(range(len(times)), key=lambda plan: times[plan])

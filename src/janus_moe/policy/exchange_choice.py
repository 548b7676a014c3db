"""Which exchange plan a batch gets: predicted times say what to try, measured times decide.

One decision per batch bucket (powers of two of the tokens of all attention instances). Plans that
may be the fastest race: they take turns, step by step, so that what disturbs one disturbs all; a
plan leaves the race once it is slower beyond noise (successive elimination, Even-Dar et al., JMLR
7, 2006, with the noise estimated). Between races only the winner runs.

All functions are pure and plans are numbers. How times are predicted (`planner.latency`), who
decides for all instances and how they learn of it (`transport`) is not known here.
docs/transport.md has the rule as pseudo-code.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from janus_moe.errors import ConfigError
from janus_moe.spec import EXCHANGE_PLANS
from janus_moe.tracing.durations import lower_quartile

NUM_BUCKETS = 16
PLAN_BITS = (len(EXCHANGE_PLANS) - 1).bit_length()
"""What the number of a plan takes. `NUM_BUCKETS` of them share a half of the control block's word,
32 bits, so with more than four plans there have to be fewer buckets."""
LEAST_NOISE, MOST_NOISE = 0.02, 0.5
NOISE = 1.55
"""Standard error of a lower quartile times sqrt(steps), over the median distance from it, of normal
distributions."""


@dataclass(frozen=True, slots=True)
class ChoiceRule:
    """When plans race and what ends a race.

    gain: share of the time that another plan must save to replace the winner of before.
    reach: plans expected to take longer than the best by this factor are not tried.
    trials: steps before noise is judged.
    window: steps of each plan in a race, at most.
    confidence: standard errors that a plan must be behind to leave.
    cost: extra time of a race that ends it, in steps of the best plan.
    interval: steps between two races.
    drift: relative change of the winner's time that starts a race earlier.
    rest: steps after a race in which drift starts none.
    """

    gain: float = 0.03
    reach: float = 1.5
    trials: int = 6
    window: int = 32
    confidence: float = 3.0
    cost: float = 16.0
    interval: int = 2000
    drift: float = 0.2
    rest: int = 400

    def __post_init__(self) -> None:
        if not (0 <= self.gain < 1 and self.reach >= 1 and self.drift > 0):
            raise ConfigError(f"gain in [0, 1), reach 1 or more, drift above 0, got {self}")
        if not 1 <= self.trials <= self.window < self.rest <= self.interval:
            raise ConfigError(f"1 <= trials <= window < rest <= interval, got {self}")
        if not (self.confidence >= 0 and self.cost >= 0):
            raise ConfigError(f"confidence and cost 0 or more, got {self}")


@dataclass(frozen=True, slots=True)
class PlanChoice:
    """What is known and chosen for one bucket.

    current: the plan of the next step.
    winner: of the latest race, or of the predictions.
    expected: [plans] seconds, of the race before; inf means not to be used.
    times: [plans] seconds of the steps of this race, or of the latest since; newest last.
    racing: whether plans take turns now.
    level: seconds of the winner when its race ended.
    since: steps since then.
    """

    current: int
    winner: int
    expected: tuple[float, ...]
    times: tuple[tuple[float, ...], ...]
    racing: bool = True
    level: float = 0.0
    since: int = 0


def bucket_of(tokens: int) -> int:
    """0 for up to 1 token, then 1 more for each power of two; the last takes all above."""
    return min(max(tokens - 1, 0).bit_length(), NUM_BUCKETS - 1)


def bucket_tokens(bucket: int) -> int:
    """The most tokens of a bucket."""
    return 1 << bucket


def first_choice(predicted: Sequence[float]) -> PlanChoice:
    """Begins with the lowest prediction.

    predicted: [plans] seconds; inf means not to be used.
    """
    if not predicted or not min(predicted) < math.inf:
        raise ConfigError("no exchange plan to choose from")
    best = _best(predicted)
    return PlanChoice(best, best, tuple(predicted), ((),) * len(predicted))


def expected_times(choice: PlanChoice) -> list[float]:
    """[plans] seconds: typical ones of measured steps; else what was expected, times the error that
    the winner has shown since and that all plans may share."""
    seen = choice.times[choice.winner]
    common = lower_quartile(seen) / choice.expected[choice.winner] if seen else 1.0
    return [
        lower_quartile(times) if times else common * seconds
        for times, seconds in zip(choice.times, choice.expected, strict=True)
    ]


def next_choice(choice: PlanChoice, seconds: float, rule: ChoiceRule) -> PlanChoice:
    """After a step of the bucket whose exchanges took `seconds` each under `choice.current`.

    A time that is not above 0 counts as none.
    """
    if not seconds > 0:
        return choice
    choice = _noted(choice, seconds, rule)
    if choice.racing:
        return _race(choice, rule)
    return _watch(choice, rule)


def pack(plans: Iterable[int]) -> int:
    """The plans of all buckets in one number, so that they fit beside an announcement."""
    packed = 0
    for bucket, plan in enumerate(plans):
        if not 0 <= plan < len(EXCHANGE_PLANS) or bucket >= NUM_BUCKETS:
            raise ValueError(
                f"plan {plan} of bucket {bucket}; there are {len(EXCHANGE_PLANS)} plans and "
                f"{NUM_BUCKETS} buckets"
            )
        packed |= plan << PLAN_BITS * bucket
    return packed


def unpack(packed: int, tokens: int) -> int:
    """The plan of a step with so many tokens."""
    return packed >> PLAN_BITS * bucket_of(tokens) & (1 << PLAN_BITS) - 1


def _noted(choice: PlanChoice, seconds: float, rule: ChoiceRule) -> PlanChoice:
    plan = choice.current
    newest = (*choice.times[plan], seconds)[-rule.window :]
    return replace(choice, times=(*choice.times[:plan], newest, *choice.times[plan + 1 :]))


def _race(choice: PlanChoice, rule: ChoiceRule) -> PlanChoice:
    """Whose turn it is, or the end: one plan is left, all have had their steps, or it costs too
    much."""
    left = _in_question(choice, rule)
    turns = [plan for plan in left if len(choice.times[plan]) < rule.window]
    tried = all(len(choice.times[plan]) >= rule.trials for plan in left)
    if len(left) < 2 or not turns or (tried and _extra(choice) > rule.cost):
        return _decided(choice, rule)
    order = expected_times(choice)
    turn = min(turns, key=lambda plan: (len(choice.times[plan]), order[plan]))
    return replace(choice, current=turn)


def _extra(choice: PlanChoice) -> float:
    """Time that the race has cost so far, in steps of its best plan; spikes do not count."""
    seen = [(lower_quartile(times), len(times)) for times in choice.times if times]
    best = min(middle for middle, _ in seen)
    return sum(steps * (middle / best - 1) for middle, steps in seen)


def _in_question(choice: PlanChoice, rule: ChoiceRule) -> list[int]:
    """Plans that may be the fastest for all we know."""
    shown = {plan: lower_quartile(times) for plan, times in enumerate(choice.times) if times}
    best = min(shown, key=lambda plan: shown[plan])
    reach = rule.reach * min(choice.expected)
    noise = _noise(choice.times, rule)

    def may_win(plan: int) -> bool:
        times = choice.times[plan]
        if not times:
            return choice.expected[plan] <= reach
        if len(times) < rule.trials:
            return len(times) < 2 or min(times) <= 2 * rule.reach * shown[best]
        error = noise * math.sqrt(1 / len(times) + 1 / len(choice.times[best]))
        return shown[plan] <= (1 + rule.confidence * error) * shown[best]

    return [plan for plan in range(len(choice.times)) if may_win(plan)]


def _noise(times: Sequence[Sequence[float]], rule: ChoiceRule) -> float:
    """Relative standard error of the typical of one step: steps' median distance from it."""
    distances: list[float] = []
    for seen in times:
        if len(seen) >= rule.trials:
            middle = lower_quartile(seen)
            ordered = sorted(abs(seconds / middle - 1) for seconds in seen)
            distances += ordered[1:]  # one is 0 by construction
    found = sorted(distances)[len(distances) // 2] if distances else MOST_NOISE
    return min(max(NOISE * found, LEAST_NOISE), MOST_NOISE)


def _decided(choice: PlanChoice, rule: ChoiceRule) -> PlanChoice:
    expected = expected_times(choice)
    measured = [plan for plan, times in enumerate(choice.times) if times]
    best = min(measured, key=lambda plan: expected[plan])
    if choice.winner in measured and expected[best] >= (1 - rule.gain) * expected[choice.winner]:
        best = choice.winner
    return PlanChoice(best, best, tuple(expected), _nothing(choice), racing=False)


def _watch(choice: PlanChoice, rule: ChoiceRule) -> PlanChoice:
    """Lets the winner run until its time is another one, or the latest race is long ago."""
    since, seen = choice.since + 1, choice.times[choice.winner]
    level = lower_quartile(seen) if since <= rule.window else choice.level
    choice = replace(choice, since=since, level=level)
    if since < rule.rest:
        return choice
    now = lower_quartile(seen)
    drifted = max(now / level, level / now) > 1 + max(rule.drift, _doubt(choice, rule))
    if not drifted and since < rule.interval:
        return choice
    expected = expected_times(choice)
    if drifted:  # what was measured before says little now: every plan is within reach again
        reach = rule.reach * min(expected)
        expected = [min(seconds, reach) if seconds < math.inf else seconds for seconds in expected]
    return PlanChoice(choice.winner, choice.winner, tuple(expected), _nothing(choice))


def _doubt(choice: PlanChoice, rule: ChoiceRule) -> float:
    """Relative difference of two windows that noise explains, at four standard errors."""
    return 4 * _noise(choice.times, rule) * math.sqrt(2 / rule.window)


def _nothing(choice: PlanChoice) -> tuple[tuple[float, ...], ...]:
    return ((),) * len(choice.times)


def _best(times: Sequence[float]) -> int:
    return min(range(len(times)), key=lambda plan: times[plan])

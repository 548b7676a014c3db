"""The choice of an exchange plan: it finds the fastest, keeps it, and follows a change."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_moe.errors import ConfigError
from janus_moe.policy.exchange_choice import (
    NUM_BUCKETS,
    ChoiceRule,
    PlanChoice,
    bucket_of,
    bucket_tokens,
    expected_times,
    first_choice,
    next_choice,
    pack,
    unpack,
)
from janus_moe.spec import EXCHANGE_PLANS

RULE = ChoiceRule()
times = st.lists(st.floats(1e-5, 1e-1), min_size=1, max_size=4)


def live(choice: PlanChoice, real: list[float], steps: int, noise: float = 0.0) -> list[PlanChoice]:
    """The choices of a bucket whose exchanges really take `real`, and noise on top: a quarter of
    the steps takes up to five times as long."""
    draw = random.Random(steps)
    choices = [choice]
    for _ in range(steps):
        seconds = real[choices[-1].current] * math.exp(noise * abs(draw.gauss(0, 1)))
        if noise and draw.random() < 0.25:
            seconds *= draw.uniform(1, 5)
        choices.append(next_choice(choices[-1], seconds, RULE))
    return choices


def time_over_best(choices: list[PlanChoice], real: list[float]) -> float:
    """Steps' worth of time lost in all, without the noise."""
    return sum(real[choice.current] / min(real) - 1 for choice in choices)


def switches(choices: list[PlanChoice]) -> int:
    return sum(a.current != b.current for a, b in itertools.pairwise(choices))


def test_buckets_are_powers_of_two() -> None:
    assert [bucket_of(tokens) for tokens in (0, 1, 2, 3, 4, 5, 8, 9)] == [0, 0, 1, 2, 2, 3, 3, 4]
    assert bucket_of(1 << 20) == NUM_BUCKETS - 1
    assert all(bucket_of(bucket_tokens(b)) == b for b in range(NUM_BUCKETS))


@given(
    st.lists(st.integers(0, len(EXCHANGE_PLANS) - 1), min_size=NUM_BUCKETS, max_size=NUM_BUCKETS)
)
def test_a_word_carries_the_plans_of_all_buckets(plans: list[int]) -> None:
    word = pack(plans)
    assert 0 <= word < 2**32, "half a word of the control block"
    assert [unpack(word, bucket_tokens(bucket)) for bucket in range(NUM_BUCKETS)] == plans


@given(times)
def test_the_first_choice_is_the_lowest_prediction(predicted: list[float]) -> None:
    assert predicted[first_choice(predicted).current] == min(predicted)


@settings(deadline=None)
@given(times, st.floats(0.1, 10))
def test_a_common_error_of_the_predictions_changes_no_choice(
    predicted: list[float], factor: float
) -> None:
    real = [factor * seconds for seconds in predicted]
    last = live(first_choice(predicted), real, 160)[-1]
    assert not last.racing
    assert real[last.winner] <= min(real) / (1 - RULE.gain) * (1 + 1e-9)


@settings(deadline=None)
@given(st.data(), st.integers(2, 4))
def test_the_fastest_of_the_plans_within_reach_is_found(data: st.DataObject, plans: int) -> None:
    """Whatever order the real times have, when predictions are off by less than the reach."""
    real = data.draw(st.lists(st.floats(1, 1.2), min_size=plans, max_size=plans))
    predicted = data.draw(st.lists(st.floats(1, 1.2), min_size=plans, max_size=plans))
    choices = live(first_choice(predicted), real, 160)
    assert not choices[-1].racing and choices[-1].current == choices[-1].winner
    assert real[choices[-1].winner] <= min(real) / (1 - RULE.gain) * (1 + 1e-9)


@pytest.mark.parametrize("real", [[1.5, 1.0, 1.3, 1.2], [1.0, 1.4, 1.2, 2.0], [2.0, 1.6, 1.3, 1.0]])
def test_the_fastest_is_found_among_noise(real: list[float]) -> None:
    predicted = [1.0, 1.2, 1.1, 1.3]
    found = [live(first_choice(predicted), real, 150 + n, 0.1)[-1].winner for n in range(20)]
    assert sum(real[plan] == min(real) for plan in found) >= 18


def test_plans_take_turns_while_they_race_and_only_the_winner_runs_then() -> None:
    choices = live(first_choice([1.0, 1.1, 1.2]), [1.2, 1.0, 1.1], 200)
    current = [choice.current for choice in choices]
    assert sorted(current[:3]) == sorted(current[3:6]) == [0, 1, 2]
    ended = next(index for index, choice in enumerate(choices) if not choice.racing)
    assert ended <= 3 * RULE.window
    assert {choice.current for choice in choices[ended:]} == {1}


def test_hopeless_plans_are_never_tried() -> None:
    choices = live(first_choice([1.0, 5.0, math.inf]), [1.1, 0.1, 0.1], 100)
    assert {choice.current for choice in choices} == {0}


@pytest.mark.parametrize("real", [[1.0, 30.0], [1.0, 2.0, 2.5, 3.0], [1.0, 1.05, 1.1, 1.02]])
def test_exploring_costs_little(real: list[float]) -> None:
    """At most two steps of a very slow plan, or some of slow ones; and again only after long."""
    choices = live(first_choice([1.0] * len(real)), real, RULE.interval, 0.1)
    assert time_over_best(choices, real) <= max(2 * max(real), 2 * RULE.cost)
    later = live(choices[-1], real, 4 * RULE.interval, 0.1)
    assert time_over_best(later, real) <= 0.03 * len(later)


def test_a_plan_that_becomes_slow_is_left_and_one_that_becomes_fast_is_found() -> None:
    predicted = [1.0, 1.2, math.inf]
    calm = live(first_choice(predicted), [1.0, 1.2, 1.0], 500)
    assert calm[-1].winner == 0
    busy = live(calm[-1], [2.0, 1.2, 1.0], RULE.rest)
    assert busy[-1].winner == 1
    assert switches([choice for choice in busy if not choice.racing]) <= 1
    # Twice as slow was out of reach before, but the links have changed for all.
    slow = live(first_choice([1.0, 1.1]), [2.2, 1.0], 500)
    fast = live(slow[-1], [0.1, 0.3], 2 * RULE.rest)
    assert (slow[-1].winner, fast[-1].winner) == (1, 0)


def test_small_gains_and_noise_do_not_switch() -> None:
    choices = live(first_choice([1.0, 1.0]), [1.0, 0.99], 3 * RULE.interval)
    assert {choice.winner for choice in choices} == {0}
    noisy = live(choices[-1], [1.0, 1.0], 3 * RULE.interval, 0.02)
    assert switches([choice for choice in noisy if not choice.racing]) <= 2


def test_what_slows_all_plans_for_long_starts_one_race_and_changes_nothing() -> None:
    calm = live(first_choice([1.0, 1.3]), [1.0, 1.3], 500)
    slowed = live(calm[-1], [3.0, 3.9], RULE.interval - 600)
    assert {choice.winner for choice in slowed} == {0}
    starts = [b for a, b in itertools.pairwise(slowed) if b.racing and not a.racing]
    assert len(starts) == 1


def test_the_other_plans_are_tried_again_after_some_time() -> None:
    choice = live(first_choice([1.0, 1.1]), [1.0, 1.4], 300)[-1]
    later = live(choice, [1.0, 0.5], RULE.interval + 100)
    assert later[RULE.interval // 2].winner == 0
    assert later[-1].winner == 1


def test_plans_that_were_not_measured_are_expected_to_be_off_like_the_winner() -> None:
    choice = next_choice(first_choice([1.0, 1.1, math.inf]), 3.0, RULE)
    assert expected_times(choice) == pytest.approx([3.0, 3.3, math.inf])


def test_steps_without_a_time_change_nothing() -> None:
    choice = live(first_choice([1.0, 1.1]), [1.0, 1.1], 20)[-1]
    assert next_choice(choice, 0.0, RULE) == choice


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        (lambda: ChoiceRule(gain=1.0), r"gain in \[0, 1\)"),
        (lambda: ChoiceRule(drift=0.0), "drift above 0"),
        (lambda: ChoiceRule(reach=0.5), "reach 1 or more"),
        (lambda: ChoiceRule(cost=-1.0), "cost 0 or more"),
        (lambda: ChoiceRule(trials=0), "1 <= trials <= window < rest <= interval"),
        (lambda: ChoiceRule(window=3), "1 <= trials <= window < rest <= interval"),
        (lambda: ChoiceRule(interval=50), "1 <= trials <= window < rest <= interval"),
        (lambda: first_choice([]), "no exchange plan"),
    ],
)
def test_bad_rules_are_refused(rule: Callable[[], object], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        rule()

"""The choice of an exchange plan: it finds the fastest, keeps it, and follows a change."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_moe.errors import ConfigError
from janus_moe.policy.exchange_choice import (
    NUM_BUCKETS,
    Choice,
    ChoiceRule,
    bucket_of,
    bucket_tokens,
    expected_times,
    first_choice,
    next_choice,
    pack,
    unpack,
)

RULE = ChoiceRule()
times = st.lists(st.floats(1e-5, 1e-1), min_size=1, max_size=4)


def live(choice: Choice, predicted: list[float], real: list[float], steps: int) -> list[Choice]:
    """The choices of a bucket whose exchanges really take `real`."""
    choices = [choice]
    for _ in range(steps):
        now = choices[-1]
        choices.append(next_choice(now, predicted, real[now.current], RULE))
    return choices


def switches(choices: list[Choice]) -> int:
    return sum(a.current != b.current for a, b in itertools.pairwise(choices))


def test_buckets_are_powers_of_two() -> None:
    assert [bucket_of(tokens) for tokens in (0, 1, 2, 3, 4, 5, 8, 9)] == [0, 0, 1, 2, 2, 3, 3, 4]
    assert bucket_of(1 << 20) == NUM_BUCKETS - 1
    assert all(bucket_of(bucket_tokens(b)) == b for b in range(NUM_BUCKETS))


@given(st.lists(st.integers(0, 3), min_size=NUM_BUCKETS, max_size=NUM_BUCKETS))
def test_a_word_carries_the_plans_of_all_buckets(plans: list[int]) -> None:
    word = pack(plans)
    assert 0 <= word < 2**32
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
    choices = live(first_choice(predicted), predicted, real, 40)
    assert real[choices[-1].current] <= min(real) / (1 - RULE.gain) * (1 + 1e-9)


@settings(deadline=None)
@given(st.data(), st.integers(2, 4))
def test_the_fastest_of_the_plans_within_reach_is_found(data: st.DataObject, plans: int) -> None:
    """Whatever order the real times have, when predictions are off by less than the reach."""
    real = data.draw(st.lists(st.floats(1, 1.2), min_size=plans, max_size=plans))
    predicted = data.draw(st.lists(st.floats(1, 1.2), min_size=plans, max_size=plans))
    choices = live(first_choice(predicted), predicted, real, 60)
    last = choices[-10:]
    assert all(choice.current == last[0].current for choice in last)
    assert real[last[0].current] <= min(real) / (1 - RULE.gain) * (1 + 1e-9)


def test_hopeless_plans_are_never_tried() -> None:
    choices = live(first_choice([1.0, 5.0]), [1.0, 5.0], [1.1, 0.1], 100)
    assert {choice.current for choice in choices} == {0}


def test_a_plan_that_becomes_slow_is_left_after_some_steps_and_only_once() -> None:
    predicted = [1.0, 1.2, math.inf]
    calm = live(first_choice(predicted), predicted, [1.0, 1.2, 1.0], 30)
    assert calm[-1].current == 0
    busy = live(calm[-1], predicted, [2.0, 1.2, 1.0], 60)
    assert busy[-1].current == 1
    assert switches(busy) == 1
    assert all(choice.current == 0 for choice in busy[: RULE.patience])


def test_small_gains_and_noise_do_not_switch() -> None:
    predicted = [1.0, 1.0]
    settled = live(first_choice(predicted), predicted, [1.0, 0.99], 20)[-1]
    noisy = settled
    for step in range(200):
        seconds = 1.0 + 0.1 * math.sin(step)
        noisy = next_choice(noisy, predicted, seconds, RULE)
        assert noisy.current == settled.current


def test_what_was_measured_long_ago_is_forgotten_and_tried_again() -> None:
    predicted = [1.0, 1.1]
    choice = live(first_choice(predicted), predicted, [1.0, 5.0], 20)[-1]
    assert expected_times(choice, predicted, RULE)[1] > 4.5
    later = live(choice, predicted, [1.0, 0.5], 4 * RULE.memory)
    assert later[RULE.memory // 2].current == 0
    assert later[-1].current == 1


def test_steps_without_a_time_change_nothing() -> None:
    choice = live(first_choice([1.0, 1.1]), [1.0, 1.1], [1.0, 1.1], 20)[-1]
    assert next_choice(choice, [1.0, 1.1], 0.0, RULE).current == choice.current


def test_bad_rules_are_refused() -> None:
    for bad in ({"gain": 1.0}, {"patience": 0}, {"smoothing": 0.0}, {"reach": 0.5}):
        with pytest.raises(ConfigError, match="or more"):
            ChoiceRule(**bad)
    with pytest.raises(ConfigError, match="no exchange plan"):
        first_choice([])

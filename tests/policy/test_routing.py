"""Choosing an attention instance."""

from __future__ import annotations

import pytest

from janus_moe.policy.routing import InstanceLoad, choose_instance, prefix_instance


def load(instance: int, usage: float = 0.0, waiting: int = 0, requests: int = 0) -> InstanceLoad:
    return InstanceLoad(instance, requests, waiting, usage, kv_capacity_tokens=1000)


def test_fewest_requests_then_least_pressure_then_lowest_id() -> None:
    assert choose_instance([load(0, 0.1, requests=2), load(1, 0.8, requests=1)]) == 1
    assert choose_instance([load(0, 0.5), load(1, 0.2)]) == 1
    assert choose_instance([load(0, 0.2, waiting=400), load(1, 0.5)]) == 1
    assert choose_instance([load(3), load(1), load(2)]) == 1


def test_memory_decides_where_it_is_short() -> None:
    assert choose_instance([load(0, 0.95, requests=1), load(1, 0.5, requests=9)]) == 1
    assert choose_instance([load(0, 0.5, waiting=500, requests=1), load(1, 0.5, requests=9)]) == 1
    assert choose_instance([load(0, 0.97, requests=1), load(1, 0.92, requests=9)]) == 1


def test_a_prefix_wins_only_while_loads_are_close() -> None:
    assert choose_instance([load(0, 0.1), load(1, 0.15, requests=3)], preferred=1) == 1
    assert choose_instance([load(0, 0.1), load(1, 0.5)], preferred=1) == 0
    assert choose_instance([load(0, 0.95), load(1, 0.95, waiting=90)], preferred=1) == 0
    assert choose_instance([load(0, 0.1)], preferred=7) == 0


def test_equal_prefixes_share_an_instance_and_spread_otherwise() -> None:
    prompts = [[seed] * 64 for seed in range(300)]
    homes = [prefix_instance(prompt, range(3)) for prompt in prompts]
    assert homes == [prefix_instance([*prompt, 5], range(3)) for prompt in prompts]
    assert all(homes.count(instance) > 60 for instance in range(3))
    without_2 = [prefix_instance(prompt, range(2)) for prompt in prompts]
    assert all(a == b for a, b in zip(homes, without_2, strict=True) if a != 2)


def test_short_prompts_have_no_preference() -> None:
    assert prefix_instance([1, 2, 3], range(3)) is None
    assert prefix_instance([1] * 64, []) is None


def test_no_instance_is_an_error() -> None:
    with pytest.raises(ValueError, match="no attention instance"):
        choose_instance([])

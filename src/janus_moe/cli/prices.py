"""Prices of devices from the command line, and what a deployment costs by them."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from janus_moe.errors import ConfigError
from janus_moe.planner.latency import Oracle
from janus_moe.planner.latency.pool_device import PoolDevice
from janus_moe.planner.search.answers import Deployment
from janus_moe.planner.search.problem import Problem


def priced(oracle: Oracle, text: str) -> Oracle:
    """Returns the oracle with prices from a text such as `H100=2.5,H20=1.2`.

    text: dollars per hour by the beginning of a device's name, in either case

    Raises ConfigError for what is no price, or a price of none of the oracle's devices.
    """
    attention, expert = oracle.attention_side, oracle.expert_side
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        try:
            price = float(value)
        except ValueError:
            price = 0.0
        if not (name and 0 < price < float("inf")):
            raise ConfigError(
                f"--gpu-price needs DEVICE=DOLLARS per hour above 0, such as H100=2.5, got {part!r}"
            )
        names = (attention.device.name, expert.device.name)
        if not any(device.startswith(name.lower()) for device in names):
            raise ConfigError(
                f"--gpu-price has a price of {name}, but devices are {' and '.join(set(names))}"
            )
        attention, expert = (_at(side, name.lower(), price) for side in (attention, expert))
    return replace(oracle, attention_side=attention, expert_side=expert)


def dollars_per_hour(problem: Problem, one: Deployment) -> float | None:
    """Returns dollars of all copies; None where a price is not known."""
    oracle = problem.oracle
    attention = oracle.attention_side.device.price_per_hour
    expert = oracle.expert_side.device.price_per_hour
    if one.kind == "monolithic":
        return None if attention is None else one.gpus * attention
    if attention is None or expert is None:
        return None
    return one.copies * (one.num_attention * attention + one.num_expert * expert)


def dollars_per_million(problem: Problem, one: Deployment) -> float | None:
    """Returns dollars per million output tokens, at the deployment's batch all the time."""
    dollars = dollars_per_hour(problem, one)
    return None if dollars is None else dollars / (one.tokens_per_s * 3600 / 1e6)


def _at(side: PoolDevice, name: str, price: float) -> PoolDevice:
    if not side.device.name.startswith(name):
        return side
    return replace(side, device=msgspec.structs.replace(side.device, price_per_hour=price))

"""Claim: settings from Python are refused as on the command line, by their own names."""

from __future__ import annotations

import pytest

from janus_moe.cluster.deployment.thread_counts import require_threads
from janus_moe.config import EngineConfig
from janus_moe.errors import ConfigError
from janus_moe.messages import SamplingParams
from janus_moe.settings import build


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"bogus": 1}, "unknown setting bogus"),
        ({"expert_instnaces": 1}, "expert_instnaces; did you mean expert_instances?"),
        ({"tensor_parallel_size": 2}, "use attention_instances and expert_instances"),
        ({"expert_instances": 1.5}, "expert_instances must be a whole number, got '1.5'"),
        ({"transport": "udp"}, "transport must be one of auto, gloo, loopback, shm, got 'udp'"),
        ({"seed": 2**64}, "seed must fit into 64 bits"),
        ({"startup_timeout": float("inf")}, "startup_timeout must be a finite number"),
        ({"model": ""}, "model must not be empty"),
        ({"model": 7}, "model must be a text"),
    ],
)
def test_a_wrong_setting_is_named(values: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        build(EngineConfig, values)
    assert said in str(refused.value)


def test_a_seed_of_a_request_has_64_bits() -> None:
    with pytest.raises(ConfigError, match="seed must fit into 64 bits"):
        build(SamplingParams, {"seed": 99999999999999999999999})


def test_settings_made_in_code_have_64_bits_too() -> None:
    with pytest.raises(ConfigError, match="--max-queue must be a number of 64 bits"):
        EngineConfig(max_queue=2**64)


def test_threads_are_a_few_for_each_core() -> None:
    require_threads(16, cores=2)
    with pytest.raises(ConfigError, match="--threads 17 is more than 8 for each of the 2 cores"):
        require_threads(17, cores=2)

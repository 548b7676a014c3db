"""Claim: settings from Python are refused as on the command line, by their own names."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from tests.server.fake_engine import tiny_spec

from janus_moe.cluster.deployment.kv_cache_size import context_length
from janus_moe.cluster.deployment.thread_counts import require_threads
from janus_moe.config import EngineConfig
from janus_moe.engine.admission import RequestLimits
from janus_moe.errors import ConfigError, JanusError
from janus_moe.llm import require_servable
from janus_moe.messages import SamplingParams
from janus_moe.model.memory import kv_block_bytes
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


@pytest.mark.parametrize(
    ("prompts", "sampling", "said"),
    [
        ([[1]], {"max_tokens": 10**9}, "context is 64 tokens"),
        ([[1]], {"temperature": -1.0}, "temperature must be between"),
        ([[]], {}, "the prompt is empty"),
        ([[1]] * 4, {}, "4 prompts are more than the 3 that are held at once"),
        ([[1]], {"bogus": 1}, "unknown setting bogus"),
    ],
)
def test_what_can_never_be_served_is_refused_by_an_engine_that_does_not_run(
    prompts: list[list[int]], sampling: dict[str, object], said: str
) -> None:
    engine: Any = SimpleNamespace(
        tokenizer=SimpleNamespace(encode=list),
        config=EngineConfig(max_queue=3),
        limits=RequestLimits(max_model_len=64, cache_tokens=64, vocab_size=8),
    )
    require_servable(engine, [[1], [2]], {"max_tokens": 4, "seed": -1})
    with pytest.raises(JanusError) as refused:
        require_servable(engine, prompts, sampling)
    assert said in str(refused.value)


def test_a_cache_that_holds_no_block_names_the_smallest_that_does() -> None:
    spec = tiny_spec(16, 64)
    smallest = kv_block_bytes(spec, 16)
    config = EngineConfig(kv_cache_memory_bytes=1)
    with pytest.raises(ConfigError, match=f"--kv-cache-memory-bytes, at least {smallest}"):
        context_length(config, spec, 1)
    assert context_length(config, spec, smallest)[0] == 16


def test_threads_are_a_few_for_each_core() -> None:
    require_threads(16, cores=2)
    with pytest.raises(ConfigError, match="--threads 17 is more than 8 for each of the 2 cores"):
        require_threads(17, cores=2)

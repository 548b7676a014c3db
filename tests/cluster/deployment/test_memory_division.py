"""Claims about what memory goes to: what is given is kept, the rest fits or is refused.

The pretended model has one MoE layer of two experts, 64 B of KV cache per token.
"""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.server.fake_engine import tiny_spec

from janus_moe.cluster.deployment.expert_slots import redundant_experts, spare_slots
from janus_moe.cluster.deployment.kv_cache_size import context_length, kv_blocks, kv_cache_bytes
from janus_moe.cluster.deployment.memory_budget import MemoryBudget
from janus_moe.cluster.deployment.memory_check import less_weights, require_room
from janus_moe.cluster.deployment.memory_division import divide_memory
from janus_moe.cluster.hosts.shares import assign, parse_hosts, whole
from janus_moe.config import EngineConfig
from janus_moe.errors import ConfigError
from janus_moe.spec import PoolShape

SPEC = msgspec.structs.replace(tiny_spec(10, 100), family="qwen3_moe")
BLOCK = 16 * SPEC.kv_bytes_per_token
SHARE = whole(PoolShape(attention=1, expert=2))
PLENTY = 2**30


def config(**settings: object) -> EngineConfig:
    return EngineConfig(expert_instances=2, **settings)  # type: ignore[arg-type]


def budget(free_bytes: int) -> MemoryBudget:
    return MemoryBudget((SHARE,), (free_bytes,))


WEIGHTS = PLENTY - less_weights(budget(PLENTY), SPEC).left[0]


def test_a_spare_slot_where_one_fits_or_moves_are_asked_for() -> None:
    said = "1 spare slot per layer and expert instance"
    assert spare_slots(config(), SPEC, 2, PLENTY) == (1, said)
    assert spare_slots(config(), SPEC, 2, 4 * SPEC.slot_bytes)[0] == 0
    assert spare_slots(config(rebalance_interval=5.0), SPEC, 2, 0) == (1, said)
    assert spare_slots(config(rebalance_spare_slots=9), SPEC, 2, 0) == (2, None)
    assert spare_slots(config(), SPEC, 1, PLENTY) == (0, None)
    with pytest.raises(ConfigError, match="--rebalance-interval 5 needs instances to move"):
        spare_slots(config(rebalance_interval=5.0), SPEC, 1, PLENTY)


def test_replicas_as_memory_and_instances_allow() -> None:
    assert redundant_experts(config(redundant_experts=2), SPEC, 2, 0) == (2, None)
    number, reason = redundant_experts(config(), SPEC, 2, -5)
    assert (number, reason) == (0, "0 redundant experts per layer")


def test_the_context_is_what_was_asked_for_or_what_the_cache_holds() -> None:
    assert context_length(config(), SPEC, 7 * BLOCK) == (100, None)
    said = "context 96 tokens (what the KV cache memory holds)"
    assert context_length(config(), SPEC, 7 * BLOCK - 1) == (96, said)
    assert context_length(config(max_model_len=20), SPEC, 2 * BLOCK) == (20, None)
    with pytest.raises(ConfigError, match=r"a context of 20 tokens needs .* --max-model-len 16"):
        context_length(config(max_model_len=20), SPEC, BLOCK)
    with pytest.raises(ConfigError, match="a larger --kv-cache-memory-bytes"):
        context_length(config(), SPEC, BLOCK - 1)
    with pytest.raises(ConfigError, match="--max-model-len 101 is beyond the 100 positions"):
        context_length(config(max_model_len=101), SPEC, PLENTY)


def test_no_more_blocks_than_all_sequences_can_fill() -> None:
    few = config(max_num_seqs=3)
    blocks, reason = kv_blocks(few, SPEC, PLENTY, 20)
    assert (blocks, reason) == (6, "KV cache 0 MiB per attention instance")
    assert kv_blocks(few, SPEC, 5 * BLOCK + 1, 20)[0] == 5
    explicit = config(kv_cache_memory_bytes=4 * BLOCK)
    assert kv_cache_bytes(explicit, 2, 0) == 4 * BLOCK
    assert kv_blocks(explicit, SPEC, 4 * BLOCK, 20) == (4, None)
    assert kv_cache_bytes(config(), 2, 1000) == 200


def test_what_does_not_fit_is_refused_with_what_to_change() -> None:
    with pytest.raises(
        ConfigError, match=r"^the weights need .* \(1 attention copies and 2 of 2 parts"
    ):
        less_weights(budget(WEIGHTS - 1), SPEC)
    shares = assign(PoolShape(attention=1, expert=2), parse_hosts("local=1A,b=2E"))
    with pytest.raises(ConfigError, match=r"^on host b the weights need .* use fewer --attention"):
        less_weights(MemoryBudget(shares, (PLENTY, 10)), SPEC)
    with pytest.raises(ConfigError, match="--redundant-experts 2 and --rebalance-spare-slots 1"):
        require_room(budget(-1), config(redundant_experts=2, rebalance_spare_slots=1))
    with pytest.raises(ConfigError, match=r"--kv-cache-memory-bytes 5000 for each of 1 attention"):
        require_room(budget(4999), config(kv_cache_memory_bytes=5000))


@given(free=st.integers(0, 2**20), spare=st.sampled_from(["auto", 1]))
def test_what_is_divided_fits(free: int, spare: str | int) -> None:
    settings = config(rebalance_spare_slots=spare)
    try:
        found = divide_memory(settings, SPEC, budget(free))
    except ConfigError:
        return
    slots = 2 * found.spare_slots + found.redundant_experts
    assert WEIGHTS + slots * SPEC.slot_bytes + found.num_kv_blocks * BLOCK <= free
    assert found.num_kv_blocks * settings.block_size >= found.max_model_len
    assert len(found.reasons) == 4

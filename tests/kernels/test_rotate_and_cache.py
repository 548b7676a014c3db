"""Rotation and storing: the fused kernel against torch."""

import pytest
import torch

from janus_moe.kernels.rotate_and_cache import rotate_and_cache, rotate_and_cache_reference
from janus_moe.kernels.rotate_and_cache.fused import rotate_and_cache_fused

HEADS, KV_HEADS, HEAD_DIM, BLOCKS, BLOCK_SIZE = 6, 2, 8, 5, 4
EPS = 1e-6


def inputs(tokens: int, seed: int, norm: bool) -> tuple[torch.Tensor, ...]:
    """qkv, norm (empty for none), rotation, keys, values, slot_mapping."""
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(tokens, HEADS + 2 * KV_HEADS, HEAD_DIM, generator=generator)
    weight = torch.rand(HEADS + KV_HEADS if norm else 0, HEAD_DIM, generator=generator)
    angles = torch.rand(tokens, 1, HEAD_DIM // 2, generator=generator) * 6
    caches = torch.randn(2, BLOCKS, BLOCK_SIZE, KV_HEADS, HEAD_DIM, generator=generator)
    slots = torch.randperm(BLOCKS * BLOCK_SIZE, generator=generator)[:tokens]
    return qkv, weight, torch.polar(torch.full_like(angles, 1.3), angles), *caches, slots


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("tokens", [0, 1, 7])
def test_fused_vs_reference(tokens: int, norm: bool) -> None:
    qkv, weight, rotation, keys, values, slots = inputs(tokens, seed=tokens, norm=norm)
    weights = weight if norm else None
    caches = {}
    queries = {}
    for run in (rotate_and_cache_reference, rotate_and_cache_fused, rotate_and_cache):
        caches[run] = keys.clone(), values.clone()
        queries[run] = run(qkv.clone(), weights, EPS, rotation, *caches[run], slots)
    for run in (rotate_and_cache_fused, rotate_and_cache):
        torch.testing.assert_close(queries[run], queries[rotate_and_cache_reference])
        for cache, want in zip(caches[run], caches[rotate_and_cache_reference], strict=True):
            torch.testing.assert_close(cache, want)


def test_a_token_alone_gets_the_same_bits_as_in_a_batch() -> None:
    qkv, weight, rotation, keys, values, slots = inputs(9, seed=1, norm=True)
    whole = rotate_and_cache_fused(qkv.clone(), weight, EPS, rotation, keys, values, slots)
    for t in range(9):
        at = slice(t, t + 1)
        caches = keys.clone(), values.clone()
        alone = rotate_and_cache_fused(qkv[at], weight, EPS, rotation[at], *caches, slots[at])
        assert torch.equal(alone, whole[at])
        assert torch.equal(caches[0], keys)


def test_bfloat16_goes_to_torch_and_rounds_once_per_operation() -> None:
    qkv, weight, rotation, keys, values, slots = inputs(3, seed=2, norm=True)
    low = [t.bfloat16() for t in (qkv, weight, keys, values)]
    query = rotate_and_cache(low[0], low[1], EPS, rotation, low[2], low[3], slots)
    want = rotate_and_cache_reference(qkv, weight, EPS, rotation, keys, values, slots)
    assert query.dtype == torch.bfloat16
    torch.testing.assert_close(query.float(), want, rtol=0.03, atol=0.03)

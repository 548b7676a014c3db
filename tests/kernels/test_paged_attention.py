"""Paged attention: the streaming, SDPA and padded paths against the reference."""

from concurrent.futures import ThreadPoolExecutor

import numba
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_moe.kernels.paged_attention import (
    AttentionBatch,
    paged_attention,
    paged_attention_reference,
    write_kv,
)
from janus_moe.kernels.paged_attention.padded import paged_attention_padded

TOLERANCE = 2e-5

Arguments = tuple[torch.Tensor, torch.Tensor, torch.Tensor, AttentionBatch, float, int]


def assert_near(result: torch.Tensor, want: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(result, want, rtol=tolerance, atol=tolerance)


def make_arguments(
    lengths: list[tuple[int, int]],
    heads: tuple[int, int] = (4, 2),
    dims: tuple[int, int] = (16, 16),
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    caches: str = "separate",
) -> Arguments:
    """lengths: (queries, context) of each sequence; heads: (query, key/value); dims: (key, value).

    `caches` is "separate" or "latent": one cache for both, as in absorbed latent attention.
    """
    generator = torch.Generator().manual_seed(sum(context for _, context in lengths))
    num_blocks = [-(-context // block_size) for _, context in lengths]
    total = sum(num_blocks) + 2
    order = torch.randperm(total, generator=generator).int()
    tables = torch.full((len(lengths), max(num_blocks, default=1) + 1), 0, dtype=torch.int32)
    used = 0
    for row, count in enumerate(num_blocks):
        tables[row, :count] = order[used : used + count]
        used += count
    shape = (total, block_size, heads[1])
    keys = torch.randn(*shape, dims[0], generator=generator).to(dtype)
    values = torch.randn(*shape, dims[1] + 3, generator=generator).to(dtype)
    queries = [queries for queries, _ in lengths]
    starts = torch.tensor([0, *queries]).cumsum(0).int()
    contexts = torch.tensor([context for _, context in lengths], dtype=torch.int32)
    query = torch.randn(sum(queries), heads[0], dims[0], generator=generator).to(dtype)
    batch = AttentionBatch(starts, contexts, tables)
    return query, keys, keys if caches == "latent" else values, batch, dims[0] ** -0.5, dims[1]


@st.composite
def lengths(draw: st.DrawFn) -> list[tuple[int, int]]:
    pairs = st.tuples(st.sampled_from([1, 1, 1, 2, 5, 17]), st.integers(0, 60))
    return [(queries, queries + before) for queries, before in draw(st.lists(pairs, max_size=5))]


@settings(max_examples=40, deadline=None)
@given(
    lengths=lengths(),
    heads=st.sampled_from([(1, 1), (4, 2), (6, 2), (7, 1), (3, 3)]),
    dims=st.sampled_from([(16, 16), (24, 20), (40, 33), (7, 5)]),
    block_size=st.sampled_from([1, 5, 16]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    caches=st.sampled_from(["separate", "latent"]),
)
def test_paged_attention_vs_reference(
    lengths: list[tuple[int, int]],
    heads: tuple[int, int],
    dims: tuple[int, int],
    block_size: int,
    dtype: torch.dtype,
    caches: str,
) -> None:
    arguments = make_arguments(lengths, heads, dims, block_size, dtype, caches)
    want = paged_attention_reference(*arguments)
    tolerance = TOLERANCE if dtype == torch.float32 else 8e-3
    assert_near(paged_attention(*arguments), want, tolerance)
    assert_near(paged_attention_padded(*arguments), want, tolerance)


def test_long_contexts_span_several_key_ranges() -> None:
    arguments = make_arguments([(1, 1000), (1, 256), (1, 257), (3, 700)])
    want = paged_attention_reference(*arguments)
    assert_near(paged_attention(*arguments), want)


def test_each_query_of_a_chunk_equals_decoding_it_alone() -> None:
    query, keys, values, batch, scale, dim = make_arguments([(6, 40)])
    whole = paged_attention(query, keys, values, batch, scale, dim)
    for token in range(6):
        alone = AttentionBatch(
            torch.tensor([0, 1], dtype=torch.int32),
            torch.tensor([35 + token], dtype=torch.int32),
            batch.block_tables,
        )
        one = paged_attention(query[token : token + 1], keys, values, alone, scale, dim)
        assert_near(one[0], whole[token])


def test_large_scores_do_not_overflow() -> None:
    query, keys, values, batch, _, dim = make_arguments([(1, 600), (9, 30)])
    want = paged_attention_reference(query, keys, values, batch, 300.0, dim)
    result = paged_attention(query, keys, values, batch, 300.0, dim)
    torch.testing.assert_close(result, want, rtol=1e-3, atol=1e-3)


def test_no_sequences_give_no_rows() -> None:
    query, keys, values, batch, scale, dim = make_arguments([])
    assert paged_attention(query, keys, values, batch, scale, dim).shape == (0, 4, 16)


def test_decode_is_the_same_bits_for_any_number_of_threads() -> None:
    arguments = make_arguments([(1, 9000), (1, 30)])
    available = numba.get_num_threads()
    many = paged_attention(*arguments)
    numba.set_num_threads(1)
    one = paged_attention(*arguments)
    numba.set_num_threads(available)
    assert torch.equal(one, many)


def test_concurrent_calls_from_several_threads() -> None:
    cases = [make_arguments([(1, 40 + i), (5, 9)]) for i in range(4)]
    want = [paged_attention(*case) for case in cases]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            results = list(pool.map(lambda case: paged_attention(*case), cases))
            assert all(torch.equal(a, b) for a, b in zip(results, want, strict=True))


def test_write_kv_stores_rows_at_block_and_offset() -> None:
    cache = torch.zeros(3, 4, 2, 5)
    rows = torch.randn(2, 2, 5)
    write_kv(cache, rows, torch.tensor([2 * 4 + 1, 0]))
    assert torch.equal(cache[2, 1], rows[0])
    assert torch.equal(cache[0, 0], rows[1])
    assert cache.count_nonzero() == rows.numel()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("lengths", [[(1, 20), (1, 33)], [(1, 20), (7, 33)]])
def test_paged_attention_on_cuda_vs_cpu(lengths: list[tuple[int, int]]) -> None:
    query, keys, values, batch, scale, dim = make_arguments(lengths)
    moved = AttentionBatch(
        batch.query_starts.cuda(), batch.context_lens.cuda(), batch.block_tables.cuda()
    )
    result = paged_attention(query.cuda(), keys.cuda(), values.cuda(), moved, scale, dim)
    want = paged_attention(query, keys, values, batch, scale, dim)
    torch.testing.assert_close(result.cpu(), want, rtol=1e-3, atol=1e-3)

"""A row's bits do not depend on its company: every float32 operation on a CPU, called with rows
alone and in batches around each size at which another implementation might take over.

Every comparison is `==`. What is claimed of whole steps stands in tests/attention.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from janus_moe.kernels.grouped_experts import grouped_experts
from janus_moe.kernels.linear import head_linear, linear
from janus_moe.kernels.paged_attention import AttentionBatch, paged_attention
from janus_moe.kernels.rms_norm import rms_norm
from janus_moe.kernels.rotate_and_cache import rotate_and_cache
from janus_moe.kernels.route import route
from janus_moe.kernels.swiglu import swiglu, swiglu_reference
from janus_moe.spec import RouterSpec

Compute = Callable[[Tensor], Tensor]
"""Results of the rows with these indices, [rows, ...]."""


def assert_company_does_not_matter(
    compute: Compute, num_rows: int, sizes: Sequence[int], seed: int = 0
) -> None:
    """Batches of these sizes, of rows at random and in random order, against one batch of all."""
    generator = torch.Generator().manual_seed(seed)
    together = compute(torch.arange(num_rows))
    for size in sizes:
        rows = torch.randperm(num_rows, generator=generator)[:size]
        differ = (compute(rows) != together[rows]).flatten(1).any(1)
        assert not differ.any(), f"{int(differ.sum())} of {size} rows have other bits"


@pytest.mark.parametrize(
    ("size", "sizes"),
    [
        (1024, [1, 3, 4, 5, 8, 64, 255, 1000, 2047, 2048, 2049]),
        (4096, [1, 2, 300, 512, 513, 1024]),
        (41, [1, 4, 5, 2049]),
    ],
)
def test_linear(size: int, sizes: list[int]) -> None:
    num_rows = max(sizes) + 51
    x, weight = torch.randn(num_rows, size), torch.randn(37, size)
    bias = torch.randn(37)
    assert_company_does_not_matter(lambda rows: linear(x[rows], weight, bias), num_rows, sizes)


def test_head_linear() -> None:
    x, weight = torch.randn(300, 3, 20), torch.randn(3, 30, 20).transpose(1, 2)
    want = torch.bmm(x.transpose(0, 1), weight).transpose(0, 1)
    torch.testing.assert_close(head_linear(x, weight), want, rtol=1e-5, atol=1e-5)
    assert_company_does_not_matter(lambda rows: head_linear(x[rows], weight), 300, [1, 4, 5, 250])


def test_swiglu() -> None:
    gate_up = torch.randn(900, 2 * 501)  # so many that threads of torch would share a row
    torch.testing.assert_close(swiglu(gate_up), swiglu_reference(gate_up), rtol=1e-5, atol=1e-6)
    assert_company_does_not_matter(lambda rows: swiglu(gate_up[rows]), 900, [1, 2, 65, 66, 800])


def test_rms_norm() -> None:
    x, weight = torch.randn(700, 72), torch.randn(72)
    sizes = [1, 2, 255, 256, 257, 600]
    assert_company_does_not_matter(lambda rows: rms_norm(x[rows], weight, 1e-6), 700, sizes)


ROUTERS = [
    RouterSpec(top_k=3, scoring="softmax", normalize=True),
    RouterSpec(top_k=3, scoring="softmax", normalize=False),
    RouterSpec(top_k=2, scoring="sigmoid", normalize=True, correction_bias=True,
               num_groups=4, top_groups=2, group_score="top2_sum", scaling_factor=2.5),
]  # fmt: skip


@pytest.mark.parametrize("router", ROUTERS)
def test_route(router: RouterSpec) -> None:
    x, weight = torch.randn(900, 64), torch.randn(16, 64)
    bias = torch.rand(16) if router.correction_bias else None

    def compute(rows: Tensor) -> Tensor:
        ids, weights = route(x[rows], weight, bias, router)
        return torch.cat((ids.float(), weights), dim=1)

    assert_company_does_not_matter(compute, 900, [1, 2, 30, 255, 256, 257, 700])


@pytest.mark.parametrize("num_slots", [1, 3])
def test_grouped_experts(num_slots: int) -> None:
    num_rows, width, size = 1100, 24, 40
    hidden = torch.randn(num_rows, size)
    gate_up, down = torch.randn(num_slots, 2 * width, size), torch.randn(num_slots, size, width)
    slot_ids = torch.stack([torch.randperm(4)[:2] for _ in range(num_rows)]).int()
    slot_ids[slot_ids >= num_slots] = -1
    weights = torch.rand(num_rows, 2)
    assert_company_does_not_matter(
        lambda rows: grouped_experts(hidden[rows], gate_up, down, slot_ids[rows], weights[rows]),
        num_rows,
        [1, 2, 6, 7, 60, 127, 128, 129, 383, 384, 385, 800],
    )


@pytest.mark.parametrize("norm", [True, False])
def test_rotate_and_cache(norm: bool) -> None:
    num_rows, heads, kv_heads, dim = 600, 3, 2, 10
    qkv = torch.randn(num_rows, heads + 2 * kv_heads, dim)
    weight = torch.rand(heads + kv_heads, dim) if norm else None
    rotation = torch.polar(torch.ones(num_rows, 1, dim // 2), torch.rand(num_rows, 1, dim // 2))

    def compute(rows: Tensor) -> Tensor:
        keys, values = torch.zeros(2, 40, 16, kv_heads, dim)
        slots = torch.arange(len(rows))
        query = rotate_and_cache(
            qkv[rows].clone(), weight, 1e-6, rotation[rows], keys, values, slots
        )
        stored = [cache.view(-1, kv_heads, dim)[slots] for cache in (keys, values)]
        return torch.cat((query, *stored), dim=1)

    assert_company_does_not_matter(compute, num_rows, [1, 2, 255, 256, 257, 500])


class Sequences:
    """Sequences in a paged cache, of which any query tokens can be asked for in any grouping."""

    def __init__(self, contexts: Sequence[int], heads: tuple[int, int], dims: tuple[int, int]):
        block_size = 16
        self.contexts, self.dims = contexts, dims
        blocks = [-(-context // block_size) for context in contexts]
        order = torch.randperm(sum(blocks)).int()
        self.tables = torch.zeros(len(contexts), max(blocks), dtype=torch.int32)
        for row, table in enumerate(torch.split(order, blocks)):
            self.tables[row, : len(table)] = table
        self.keys = torch.randn(sum(blocks), block_size, heads[1], dims[0])
        self.values = torch.randn(sum(blocks), block_size, heads[1], dims[1])
        self.queries = [torch.randn(context, heads[0], dims[0]) for context in contexts]

    def attend(self, chunks: Sequence[tuple[int, int, int]]) -> list[Tensor]:
        """chunks: (sequence, first query, end)."""
        starts = torch.tensor([0, *(end - first for _, first, end in chunks)]).cumsum(0).int()
        contexts = torch.tensor([end for *_, end in chunks], dtype=torch.int32)
        batch = AttentionBatch(starts, contexts, self.tables[[s for s, *_ in chunks]])
        query = torch.cat([self.queries[s][first:end] for s, first, end in chunks])
        out = paged_attention(
            query, self.keys, self.values, batch, self.dims[0] ** -0.5, self.dims[1]
        )
        return list(torch.split(out, [end - first for _, first, end in chunks]))


@pytest.mark.parametrize("heads", [(1, 1), (4, 2), (8, 1), (7, 1), (12, 1)])
@pytest.mark.parametrize("dims", [(16, 16), (24, 20), (40, 33)])
def test_attention_of_chunks(heads: tuple[int, int], dims: tuple[int, int]) -> None:
    torch.manual_seed(0)
    sequences = Sequences([600, 40, 17], heads, dims)
    alone = [
        torch.cat([sequences.attend([(s, t, t + 1)])[0] for t in range(context)])
        for s, context in enumerate(sequences.contexts)
    ]
    for cuts in ([600], [8, 17, 100, 255, 257, 300, 600], [1, 10, 511, 512, 520, 600]):
        for first, end in zip([0, *cuts], cuts, strict=False):
            first_too, second = sequences.attend([(0, first, end), (1, 5, 30)])
            assert torch.equal(first_too, alone[0][first:end])
            assert torch.equal(second, alone[1][5:30])
    decoded = sequences.attend([(2, 16, 17), (0, 590, 600), (1, 39, 40)])
    want = (alone[2][16:], alone[0][590:], alone[1][39:])
    assert all(torch.equal(a, b) for a, b in zip(decoded, want, strict=True))

"""The attention half of a layer in one call against its operations one by one."""

import math
from dataclasses import dataclass, fields, replace

import pytest
import torch

from janus_moe.kernels.gqa_layer import gqa_layer, gqa_layer_reference
from janus_moe.kernels.gqa_layer.fused import gqa_layer_fused
from janus_moe.kernels.paged_attention import AttentionBatch

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, BLOCK_SIZE = 40, 6, 2, 16, 4


@dataclass(frozen=True)
class Weights:
    """The weights of a layer, as `GqaTensors` describes them."""

    input_norm: torch.Tensor
    qkv: torch.Tensor
    qkv_bias: torch.Tensor | None
    qk_norm: torch.Tensor | None
    o: torch.Tensor
    o_bias: torch.Tensor | None
    output_norm: torch.Tensor
    eps: float
    scale: float


def make_weights(generator: torch.Generator, optional: bool) -> Weights:
    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * (1 / math.sqrt(shape[-1]))

    rows = (HEADS + 2 * KV_HEADS) * HEAD_DIM
    return Weights(
        input_norm=random(HIDDEN),
        qkv=random(rows, HIDDEN),
        qkv_bias=random(rows) if optional else None,
        qk_norm=random(HEADS + KV_HEADS, HEAD_DIM) if optional else None,
        o=random(HIDDEN, HEADS * HEAD_DIM),
        o_bias=random(HIDDEN) if optional else None,
        output_norm=random(HIDDEN),
        eps=1e-6,
        scale=HEAD_DIM**-0.5,
    )


class Step:
    """A decode step over caches full of random rows; contexts: of each sequence."""

    def __init__(self, contexts: list[int], optional: bool = True) -> None:
        generator = torch.Generator().manual_seed(sum(contexts))
        tokens = len(contexts)
        blocks = [-(-context // BLOCK_SIZE) for context in contexts]
        order = torch.randperm(sum(blocks) + 1, generator=generator).int()
        tables = torch.zeros(tokens, max(blocks), dtype=torch.int32)
        for row, count in enumerate(blocks):
            tables[row, :count], order = order[:count], order[count:]
        last = torch.tensor(contexts) - 1
        angles = torch.rand(tokens, 1, HEAD_DIM // 2, generator=generator) * 6
        self.weights = make_weights(generator, optional)
        self.hidden = torch.randn(tokens, HIDDEN, generator=generator)
        self.rotation = torch.polar(torch.ones_like(angles), angles)
        shape = (2, sum(blocks) + 1, BLOCK_SIZE, KV_HEADS, HEAD_DIM)
        self.caches = torch.randn(shape, generator=generator)
        blocks_of_last = tables[torch.arange(tokens), last // BLOCK_SIZE].long()
        self.slots = blocks_of_last * BLOCK_SIZE + last % BLOCK_SIZE
        starts = torch.arange(tokens + 1, dtype=torch.int32)
        self.batch = AttentionBatch(starts, last.int() + 1, tables)

    def run(self, layer=gqa_layer) -> tuple[torch.Tensor, ...]:  # type: ignore[no-untyped-def]
        """Residual stream, its normalised rows, keys and values afterwards."""
        keys, values = self.caches.clone()
        out = layer(self.hidden, self.weights, self.rotation, keys, values, self.slots, self.batch)
        return (*out, keys, values)


@pytest.mark.parametrize("optional", [True, False])
@pytest.mark.parametrize("contexts", [[1], [300], [3, 1, 8, 17, 260, 4, 5]])
def test_fused_has_the_bits_of_the_operations_one_by_one(
    contexts: list[int], optional: bool
) -> None:
    step = Step(contexts, optional)
    want = step.run(gqa_layer_reference)
    for layer in (gqa_layer_fused, gqa_layer):
        for result, expected in zip(step.run(layer), want, strict=True):
            assert torch.equal(result, expected)


def test_other_dtypes_and_layouts_go_to_the_operations() -> None:
    step = Step([5, 9])
    want = step.run()
    step.hidden = step.hidden.t().contiguous().t()
    for result, expected in zip(step.run(), want, strict=True):
        torch.testing.assert_close(result, expected)
    tensors = {
        field.name: getattr(step.weights, field.name).bfloat16()
        for field in fields(step.weights)
        if field.name not in ("eps", "scale")
    }
    step.weights = replace(step.weights, **tensors)
    step.hidden, step.caches = step.hidden.bfloat16(), step.caches.bfloat16()
    low = step.run()
    assert low[0].dtype == low[1].dtype == torch.bfloat16
    torch.testing.assert_close(low[0].float(), want[0], rtol=0.05, atol=0.05)

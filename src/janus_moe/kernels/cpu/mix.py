"""Register tile of a weighted sum of rows, as a numba intrinsic: the second half of attention.

numba's cache does not see changes of this file: delete the `*.nbi` and `*.nbc` files after edits.
"""

from typing import Any

from numba.core import cgutils, types
from numba.extending import intrinsic

from janus_moe.kernels.cpu import ir as emit


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def mix_tile(
    typing: Any,
    num_heads: Any,
    values: Any,
    first: Any,
    row_stride: Any,
    count: Any,
    ahead: Any,
    weights: Any,
    weight_stride: Any,
    out: Any,
    dim: Any,
) -> Any:
    """out[h, :dim] += sum over rows r < count of weights[h, r] * values[first + r * row_stride].

    values: pointer to float32 or uint16 (bfloat16 bits); the same rows plus `ahead` elements are
    prefetched. weights: pointer to float32 [num_heads, weight_stride]; out: pointer to float32
    [num_heads, dim].
    """
    if not isinstance(num_heads, types.IntegerLiteral):
        return None
    integer = types.int64
    arguments = (
        num_heads, values, integer, integer, integer, integer, weights, integer, out, integer,
    )  # fmt: skip

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        dim, lanes = arguments[-1], emit.lanes()
        columns = 2 if lanes == 8 else 4  # 4 heads x columns accumulators must stay in registers
        begin = emit.INT64(0)
        for width, vectors in ((lanes, columns), (lanes, 1), (1, 1)):
            end = builder.and_(dim, emit.INT64(-width * vectors))
            _emit_mix(builder, arguments, num_heads.literal_value, begin, end, width, vectors)
            begin = end
        return context.get_dummy_value()

    return types.void(*arguments), generate


def _emit_mix(
    builder: Any, arguments: Any, heads: int, begin: Any, end: Any, width: int, vectors: int
) -> None:
    """Components begin..end, `vectors` registers of `width` lanes at a time."""
    _, values, first, row_stride, count, ahead, weights, weight_stride, out, dim = arguments
    kind = emit.vector(width) if width > 1 else emit.FLOAT
    sums = emit.allocate(builder, kind, heads * vectors)
    step = emit.INT64(width * vectors)
    with cgutils.for_range_slice(builder, begin, end, step) as (d, _):
        places = []
        for h in range(heads):
            row = builder.gep(out, [builder.add(d, builder.mul(dim, emit.INT64(h)))])
            places += [builder.gep(row, [emit.INT64(v * width)]) for v in range(vectors)]
        for slot, place in zip(sums, places, strict=True):
            builder.store(emit.load(builder, place, width), slot)
        with cgutils.for_range(builder, count) as loop:
            offset = builder.add(first, builder.mul(loop.index, row_stride))
            row = builder.gep(values, [builder.add(offset, d)])
            parts = [builder.gep(row, [emit.INT64(v * width)]) for v in range(vectors)]
            for part in parts:
                emit.prefetch(builder, builder.gep(part, [ahead]))
            loaded = [emit.load(builder, part, width) for part in parts]
            for h in range(heads):
                place = builder.add(loop.index, builder.mul(weight_stride, emit.INT64(h)))
                weight = builder.load(builder.gep(weights, [place]))
                wide = emit.splat(builder, weight, width) if width > 1 else weight
                for v, value in enumerate(loaded):
                    slot = sums[h * vectors + v]
                    total = emit.multiply_add(builder, wide, value, builder.load(slot))
                    builder.store(total, slot)
        for slot, place in zip(sums, places, strict=True):
            value = builder.load(slot)
            if width > 1:
                emit.store(builder, value, place)
            else:
                builder.store(value, place)

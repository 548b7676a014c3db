"""Register tiles as numba intrinsics: the inner loops that all CPU kernels share.

A tile keeps its accumulators in registers and streams each row once. The number of rows and
columns are literals, so each combination is straight-line code. Knows nothing about scheduling.
numba's cache does not see changes of this file: delete the `*.nbi` and `*.nbc` files after edits.
"""

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils, types
from numba.extending import intrinsic

from janus_moe.kernels.cpu import ir as emit


@intrinsic  # type: ignore[untyped-decorator]
def pointer(typing: Any, array: Any) -> Any:
    """Address of the first element of a C-contiguous array, typed by its element."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return context.make_array(array)(context, builder, values[0]).data

    kinds: Any = types
    return kinds.CPointer(array.dtype)(array), generate


@intrinsic  # type: ignore[untyped-decorator]
def claim(typing: Any, counter: Any) -> Any:
    """Atomically take the next number from `counter[0]` (pointer to int64)."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.atomic_rmw("add", values[0], ir.Constant(emit.INT64, 1), "monotonic")

    return types.int64(counter), generate


@intrinsic  # type: ignore[untyped-decorator]
def out_of_line(typing: Any) -> Any:
    """Keep LLVM from copying the function that calls this into its callers (compile time)."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic  # type: ignore[untyped-decorator]
def max_columns(typing: Any) -> Any:
    """Most columns of a `dot_tile` with 4 rows whose accumulators stay in registers (3 or 6)."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return ir.Constant(emit.INT64, 6 if emit.lanes() == 16 else 3)

    return types.int64(), generate


@intrinsic  # type: ignore[untyped-decorator]
def panel_rows(typing: Any) -> Any:
    """Most rows of a `dot_tile` with 3 columns whose accumulators stay in registers (4 or 8)."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return ir.Constant(emit.INT64, 8 if emit.lanes() == 16 else 4)

    return types.int64(), generate


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def dot_tile(
    typing: Any,
    num_rows: Any,
    num_columns: Any,
    matrix: Any,
    start: Any,
    row_stride: Any,
    ahead: Any,
    x: Any,
    starts: Any,
    length: Any,
    out: Any,
) -> Any:
    """Dot products of `num_rows` rows of `matrix` with `num_columns` columns; both are literals.

    matrix: pointer to float32 or uint16 (bfloat16 bits). Row r begins at element offset
    start + r * row_stride; the same offset plus `ahead` is prefetched (a literal 0: nothing is).
    x: pointer to float32; column c begins at offset starts[c]. `out` receives dot(row r, column c)
    at r * num_columns + c and must have room for SUMS_SIZE numbers.
    """
    if not isinstance(num_rows, types.IntegerLiteral):
        return None
    if not isinstance(num_columns, types.IntegerLiteral):
        return None
    prefetching = not isinstance(ahead, types.IntegerLiteral)
    arguments = (
        num_rows, num_columns, matrix, types.int64, types.int64,
        types.int64 if prefetching else ahead, x, starts, types.int64, out,
    )  # fmt: skip

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        shape = num_rows.literal_value, num_columns.literal_value
        _emit_dot(builder, values, *shape, prefetching)
        return context.get_dummy_value()

    return types.void(*arguments), generate


def _emit_dot(builder: Any, values: Any, num_rows: int, columns: int, prefetching: bool) -> None:
    _, _, matrix, start, row_stride, ahead, x, starts, length, out = values
    offsets = [builder.add(start, builder.mul(row_stride, emit.INT64(r))) for r in range(num_rows)]
    rows = [builder.gep(matrix, [offset]) for offset in offsets]
    column_starts = [builder.load(builder.gep(starts, [emit.INT64(c)])) for c in range(columns)]
    xs = [builder.gep(x, [start]) for start in column_starts]
    width = emit.lanes()
    sums = emit.allocate(builder, emit.vector(width), len(rows) * columns)
    body = builder.and_(length, emit.INT64(-width))
    with cgutils.for_range_slice(builder, emit.INT64(0), body, emit.INT64(width)) as (k, _):
        if prefetching:
            for row in rows:
                emit.prefetch(builder, builder.gep(row, [builder.add(ahead, k)]))
        v = [emit.load(builder, builder.gep(column, [k]), width) for column in xs]
        for r, row in enumerate(rows):  # one row at a time, to need few registers
            w = emit.load(builder, builder.gep(row, [k]), width)
            _accumulate(builder, sums[r * columns :], [w], v)
    totals = emit.horizontal_sums(builder, [builder.load(s) for s in sums], width)
    for i, total in enumerate(totals):
        emit.store(builder, total, builder.gep(out, [emit.INT64(i * width)]))
    with builder.if_then(builder.icmp_signed("<", body, length), likely=False):
        _emit_dot_tail(builder, rows, xs, body, length, out)


def _accumulate(builder: Any, sums: list[Any], rows: list[Any], columns: list[Any]) -> None:
    """sums[r * len(columns) + c] += rows[r] * columns[c]."""
    for r, row in enumerate(rows):
        for c, column in enumerate(columns):
            slot = sums[r * len(columns) + c]
            builder.store(emit.multiply_add(builder, row, column, builder.load(slot)), slot)


def _emit_dot_tail(
    builder: Any, rows: list[Any], xs: list[Any], begin: Any, end: Any, out: Any
) -> None:
    """Add the elements that do not fill a vector to `out`, one at a time."""
    with cgutils.for_range_slice(builder, begin, end, emit.INT64(1)) as (k, _):
        v = [emit.load(builder, builder.gep(column, [k]), 1) for column in xs]
        for r, row in enumerate(rows):
            w = emit.load(builder, builder.gep(row, [k]), 1)
            for c, value in enumerate(v):
                slot = builder.gep(out, [emit.INT64(r * len(v) + c)])
                total = emit.multiply_add(builder, w, value, builder.load(slot))
                builder.store(total, slot)

"""LLVM building blocks of the CPU tiles: vectors, element loads, the order of a horizontal sum.

Knows nothing about experts, attention or numba's typing; it only emits instructions into a builder.
Every sum below has one fixed order, so a result does not depend on which tile computed it.
"""

from functools import cache
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils, codegen, config

FLOAT = ir.FloatType()
INT16 = ir.IntType(16)
INT32 = ir.IntType(32)
INT64 = ir.IntType(64)


def host_features() -> frozenset[str]:
    """Instruction sets that numba generates code for, e.g. `avx2`, `fma` (NUMBA_CPU_FEATURES)."""
    settings: Any = config
    enabled = (settings.CPU_FEATURES or codegen.get_host_cpu_features()).split(",")
    return frozenset(feature[1:] for feature in enabled if feature.startswith("+"))


@cache
def has_bfloat16_products() -> bool:
    """Whether this host multiplies bfloat16 natively, as torch's matrix products then do."""
    return bool(host_features() & {"avx512bf16", "amx-bf16"})


@cache
def lanes() -> int:
    """float32 lanes of one vector register."""
    features = host_features()
    if "avx512f" in features:
        return 16
    return 8 if "avx" in features else 4


def vector(width: int) -> ir.VectorType:
    return ir.VectorType(FLOAT, width)


def multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, fused where the host fuses (an emulated fma would be a library call per lane)."""
    if not host_features() & {"fma", "neon"}:
        return builder.fadd(builder.fmul(a, b), c)
    name = f"llvm.fma.v{a.type.count}f32" if isinstance(a.type, ir.VectorType) else "llvm.fma.f32"
    signature = ir.FunctionType(a.type, [a.type] * 3)
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), [a, b, c])


def load(builder: Any, pointer: Any, width: int) -> Any:
    """`width` consecutive elements as float32; 16-bit elements are bfloat16 and widen exactly."""
    element = pointer.type.pointee
    if width == 1:
        raw, wide, single = builder.load(pointer), INT32, FLOAT
    else:
        source = builder.bitcast(pointer, ir.VectorType(element, width).as_pointer())
        raw, wide, single = builder.load(source), ir.VectorType(INT32, width), vector(width)
        raw.align = element.width // 8 if isinstance(element, ir.IntType) else 4
    if element == FLOAT:
        return raw
    shift = ir.Constant(wide, [16] * width if width > 1 else 16)
    return builder.bitcast(builder.shl(builder.zext(raw, wide), shift), single)


def store(builder: Any, value: Any, pointer: Any) -> None:
    """Write a float32 vector to an element pointer that need not be aligned."""
    target = builder.bitcast(pointer, value.type.as_pointer())
    builder.store(value, target).align = 4


def splat(builder: Any, scalar: Any, width: int) -> Any:
    """All lanes equal to `scalar`."""
    one = builder.insert_element(ir.Constant(vector(width), ir.Undefined), scalar, INT32(0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(INT32, width), [0] * width))


def prefetch(builder: Any, pointer: Any) -> None:
    """Ask for the cache line at `pointer` in the first-level cache; any address is allowed."""
    byte = builder.bitcast(pointer, ir.IntType(8).as_pointer())
    name = "llvm.prefetch.p0i8"
    signature = ir.FunctionType(ir.VoidType(), [byte.type, INT32, INT32, INT32])
    function = cgutils.get_or_insert_function(builder.module, signature, name)
    builder.call(function, [byte, INT32(0), INT32(3), INT32(1)])


def _halve(builder: Any, a: Any, b: Any, segment: int, width: int) -> Any:
    """Add the upper half of every `segment` lanes to the lower; results of `a`, then of `b`."""
    starts = [base + s for base in (0, width) for s in range(0, width, segment)]
    half = segment // 2
    low = [s + i for s in starts for i in range(half)]
    high = [s + half + i for s in starts for i in range(half)]
    mask = ir.VectorType(INT32, width)
    return builder.fadd(
        builder.shuffle_vector(a, b, ir.Constant(mask, low)),
        builder.shuffle_vector(a, b, ir.Constant(mask, high)),
    )


def horizontal_sums(builder: Any, vectors: list[Any], width: int) -> list[Any]:
    """Sum the lanes of every vector; the sums lie in order in the lanes of the vectors returned.

    A tree that always adds lane i + n/2 to lane i. Working on pairs costs about one shuffle and
    add per input instead of one per input and level.
    """
    unused = ir.Constant(vector(width), ir.Undefined)
    segment = width
    while segment > 1:
        if len(vectors) % 2:
            vectors = [*vectors, unused]
        pairs = zip(vectors[::2], vectors[1::2], strict=True)
        vectors = [_halve(builder, a, b, segment, width) for a, b in pairs]
        segment //= 2
    return vectors


def allocate(builder: Any, kind: Any, count: int) -> list[Any]:
    """Zeroed variables that LLVM keeps in registers."""
    slots = [cgutils.alloca_once(builder, kind) for _ in range(count)]
    for slot in slots:
        builder.store(ir.Constant(kind, None), slot)
    return slots

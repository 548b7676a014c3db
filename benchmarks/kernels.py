"""How close the CPU kernels come to memory bandwidth, and how far ahead of torch they are.

Every round runs kernel, reference and a streaming read of the same size one after another and each
keeps its best time, so that other load on the machine hits all three alike: use the ratios.

    python -m benchmarks.kernels --json kernels.json
"""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import cycle
from typing import Any

import numba
import numpy as np
import torch
from benchmarks.support.program import Result, flag, main

from janus_moe.kernels.cpu.ir import lanes
from janus_moe.kernels.grouped_experts import grouped_experts, grouped_experts_reference
from janus_moe.kernels.linear import linear, linear_reference
from janus_moe.kernels.paged_attention import (
    AttentionBatch,
    paged_attention,
    paged_attention_reference,
)

HIDDEN, EXPERTS, WIDTH, TOP_K = 1024, 64, 384, 8


@dataclass(frozen=True)
class Row:
    """One shape; times are the best of the rounds."""

    op: str
    shape: str
    dtype: str
    fast_us: float
    reference_us: float
    read_us: float  # reading as many bytes as the kernel must read
    gbps: float  # bytes the kernel must read / fast_us
    gflops: float

    @property
    def speedup(self) -> float:
        return self.reference_us / self.fast_us

    @property
    def of_bandwidth(self) -> float:
        return self.read_us / self.fast_us


def _sum(data: Any) -> Any:
    total = np.float32(0)
    for i in numba.prange(data.size):
        total += data[i]
    return total


def _compiled_sum() -> Any:
    options: dict[str, Any] = {"parallel": True, "fastmath": True, "nogil": True}
    compile_it: Any = numba.njit(**options)
    return compile_it(_sum)


class Stream:
    """Reads a given number of bytes that are not in any cache, with every thread."""

    def __init__(self, total_bytes: int = 600_000_000) -> None:
        self._sum: Any = _compiled_sum()
        self._data = np.ones(total_bytes // 4, dtype=np.float32)
        self._position = 0

    def read(self, num_bytes: int) -> None:
        count = min(max(num_bytes // 4, 1), self._data.size)
        if self._position + count > self._data.size:
            self._position = 0
        self._sum(self._data[self._position : self._position + count])
        self._position += count


def measure(
    op: str,
    shape: str,
    dtype: torch.dtype,
    calls: tuple[Callable[[], object], Callable[[], object]],
    cost: tuple[float, float],
    stream: Stream,
    rounds: int,
) -> Row:
    """Times a kernel, its reference and a read in turns.

    calls: (kernel, reference).
    cost: (bytes that must be read, floating-point operations).
    """
    num_bytes, operations = cost
    best = [float("inf")] * 3
    turns: list[Callable[[], object]] = [*calls, partial(stream.read, int(num_bytes))]
    for _ in range(rounds + 1):
        for i, call in enumerate(turns):
            start_s = time.perf_counter()
            call()
            best[i] = min(best[i], time.perf_counter() - start_s)
    fast_s, reference_s, read_s = best
    return Row(
        op, shape, str(dtype).removeprefix("torch."), fast_s * 1e6, reference_s * 1e6, read_s * 1e6,
        num_bytes / fast_s / 1e9, operations / fast_s / 1e9,
    )  # fmt: skip


def bench_grouped_experts(dtype: torch.dtype, stream: Stream, rounds: int) -> list[Row]:
    """Decode batches over eight layers' weights in turn, so that weights are cold."""
    layers = [
        (
            (torch.randn(EXPERTS, 2 * WIDTH, HIDDEN) / HIDDEN**0.5).to(dtype),
            (torch.randn(EXPERTS, HIDDEN, WIDTH) / WIDTH**0.5).to(dtype),
        )
        for _ in range(8)
    ]
    rows = []
    for tokens in (1, 4, 16, 64, 256):
        hidden = torch.randn(tokens, HIDDEN).to(dtype)
        choices = [torch.randperm(EXPERTS)[:TOP_K] for _ in range(tokens)]
        slot_ids, weights = torch.stack(choices).int(), torch.rand(tokens, TOP_K)
        turn: Any = cycle(layers)
        active = len(torch.unique(slot_ids))
        cost = (
            active * 3 * HIDDEN * WIDTH * dtype.itemsize,
            tokens * TOP_K * 6.0 * HIDDEN * WIDTH,
        )

        def on_next_layer(
            op: Callable[..., torch.Tensor],
            h: torch.Tensor = hidden,
            i: torch.Tensor = slot_ids,
            w: torch.Tensor = weights,
            turn: Any = turn,
        ) -> Callable[[], torch.Tensor]:
            return lambda: op(h, *next(turn), i, w)

        calls = (on_next_layer(grouped_experts), on_next_layer(grouped_experts_reference))
        rows.append(measure("grouped_experts", f"B={tokens}", dtype, calls, cost, stream, rounds))
    return rows


def bench_linear(dtype: torch.dtype, stream: Stream, rounds: int) -> list[Row]:
    rows = []
    for out in (256, 1024, 32768):
        layers = [torch.randn(out, HIDDEN).to(dtype) for _ in range(max(2, 65536 // out))]
        for tokens in (1, 4, 16, 64):
            x, turn = torch.randn(tokens, HIDDEN).to(dtype), cycle(layers)
            calls = (
                lambda x=x, t=turn: linear(x, next(t)),
                lambda x=x, t=turn: linear_reference(x, next(t)),
            )
            cost = (out * HIDDEN * dtype.itemsize, 2.0 * tokens * out * HIDDEN)
            shape = f"{out}x{HIDDEN} M={tokens}"
            rows.append(measure("linear", shape, dtype, calls, cost, stream, rounds))
    return rows


def bench_attention(dtype: torch.dtype, stream: Stream, rounds: int) -> list[Row]:
    """Decode of 16 query heads on 4 key/value heads of 64, and absorbed latent attention."""
    rows = []
    kinds = {"16/4 heads of 64": (4, 64, 64), "latent 512+64": (1, 576, 512)}
    for kind, (kv_heads, key_dim, value_dim) in kinds.items():
        for batch, context in ((1, 512), (1, 8192), (16, 512), (64, 512)):
            blocks = -(-context // 16)
            keys = torch.randn(batch * blocks, 16, kv_heads, key_dim).to(dtype)
            values = keys if kv_heads == 1 else torch.randn_like(keys)
            layout = AttentionBatch(
                torch.arange(batch + 1, dtype=torch.int32),
                torch.full((batch,), context, dtype=torch.int32),
                torch.randperm(batch * blocks).int().view(batch, blocks),
            )
            query = torch.randn(batch, 16, key_dim).to(dtype)
            arguments = (query, keys, values, layout, key_dim**-0.5, value_dim)
            calls = (
                lambda a=arguments: paged_attention(*a),
                lambda a=arguments: paged_attention_reference(*a),
            )
            cached = keys.numel() * dtype.itemsize * (1 if kv_heads == 1 else 2)
            cost = (cached, 2.0 * batch * context * 16 * (key_dim + value_dim))
            shape = f"{kind} B={batch} context={context}"
            rows.append(measure("paged_attention", shape, dtype, calls, cost, stream, rounds))
    return rows


def facts() -> dict[str, Any]:
    """Returns what a number needs to be read, beside the machine."""
    names = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "NUMBA_THREADING_LAYER")
    return {
        "float32_lanes": lanes(),
        "numba_threads": numba.get_num_threads(),
        "torch_threads": torch.get_num_threads(),
        "threading_layer": numba.threading_layer(),
        "environment": {name: os.environ[name] for name in names if name in os.environ},
    }


def columns(row: Row) -> dict[str, Any]:
    return {**asdict(row), "speedup": row.speedup, "of_bandwidth": row.of_bandwidth}


def measure_all(options: argparse.Namespace) -> Result:
    torch.manual_seed(0)
    stream, rows = Stream(), []
    for dtype in (torch.float32, torch.bfloat16):
        rows += bench_grouped_experts(dtype, stream, options.rounds)
        rows += bench_linear(dtype, stream, options.rounds)
        rows += bench_attention(dtype, stream, options.rounds)
    return {**facts(), "rows": [columns(row) for row in rows]}


if __name__ == "__main__":
    main(
        __doc__,
        measure_all,
        flag("--rounds", type=int, default=8, help="repetitions of each shape"),
    )

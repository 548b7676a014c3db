"""Fits the oracle's laws to measured kernel tables and says how far off they are.

    python -m paper.fit_kernels --tables DIR --json paper/results/kernel_fit.json --write

DIR/h100_sxm and DIR/h200_sxm hold the tables that NVIDIA AIConfigurator collects (Apache-2.0):
SGLang 0.5.14 kernels on one GPU in milliseconds, NCCL 2.29 on one node. `--write` replaces the
coefficients that ship with the package. Only rows of decode sizes with balanced routing count.

Errors are of shapes that the law was not fitted to: the rows are divided by shape into folds, each
is predicted by a fit to the others.

`num_tokens` of the MoE table counts the tokens of the whole expert-parallel group: latency at
num_tokens = 16 reads all local experts for every group size, which only global tokens do. Its
bfloat16 and mxfp4 kernels switch to a wide tile once num_tokens exceeds the local experts, which is
`s_per_byte_wide`. Repeated runs of small matrices hit the L2 cache: products below a few MB are
slower in a model, where their weights are cold.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from benchmarks.support.program import Result, flag, main
from numpy.typing import NDArray

from janus_moe.planner.latency.coefficients import Coefficients, LinkLaw, OpLaw
from janus_moe.planner.latency.facts import DATA
from paper.kernel_tables import Columns, numbers, read_table

Array = NDArray[np.float64]

DEVICES = ("h100_sxm", "h200_sxm")
SOURCE = "https://github.com/ai-dynamo/aiconfigurator, SGLang 0.5.14 and NCCL 2.29 (Apache-2.0)"
NUM_FOLDS = 12
OUTLIER = 0.2
"""Relative error from which a row counts less and less (soft L1)."""

START = OpLaw(
    floor_s=5e-6, s_per_byte=3e-13, s_per_flop=2e-15, s_per_depth=1e-9, s_per_unit=1e-12, p=2.0
)


@dataclass(frozen=True)
class Rows:
    """Measured operations as a law sees them; all arrays are [rows].

    seconds: measured.
    num_bytes, flops, depth, units, wide: as `OpLaw.seconds` takes them.
    shapes: of the operands; they divide the rows into folds.
    """

    seconds: Array
    num_bytes: Array
    flops: Array
    depth: Array
    units: Array
    wide: NDArray[np.bool_]
    shapes: tuple[tuple[float, ...], ...]

    def select(self, mask: NDArray[np.bool_]) -> Rows:
        chosen = tuple(shape for shape, keep in zip(self.shapes, mask, strict=True) if keep)
        return Rows(
            self.seconds[mask],
            self.num_bytes[mask],
            self.flops[mask],
            self.depth[mask],
            self.units[mask],
            self.wide[mask],
            chosen,
        )

    def predicted(self, law: OpLaw) -> Array:
        return law.seconds(
            self.num_bytes, self.flops, depth=self.depth, units=self.units, wide=self.wide
        )


def gemm_rows(tables: Path, dtype: str) -> Rows:
    """Matrix products of up to 2,048 tokens with weights of at least half a million numbers."""
    t = read_table(tables, "gemm_perf")
    m, n, k = (numbers(t, key) for key in "mnk")
    mask = (t["gemm_dtype"] == dtype) & (m <= 2048) & (n >= 512) & (k >= 256) & (n * k >= 2**19)
    m, n, k, size = m[mask], n[mask], k[mask], 2 if dtype == "bfloat16" else 1
    zeros = np.zeros_like(m)
    return Rows(
        seconds=1e-3 * numbers(t, "latency")[mask],
        num_bytes=n * k * size + 2 * m * (n + k),
        flops=2 * m * n * k,
        depth=k,
        units=zeros,
        wide=zeros > 0,
        shapes=tuple(zip(n, k, strict=True)),
    )


def gqa_rows(tables: Path, cache: str) -> Rows:
    """Decode attention without a window."""
    t = read_table(tables, "generation_attention_perf")
    mask = (
        (t["kernel_source"] == "fa3") & (t["kv_cache_dtype"] == cache) & (t["window_size"] == "0")
    )
    batch, heads, kv_heads, dim = (
        numbers(t, key)[mask]
        for key in ("batch_size", "num_heads", "num_key_value_heads", "head_dim")
    )
    positions = batch * (numbers(t, "isl") + numbers(t, "step"))[mask]
    zeros = np.zeros_like(batch)
    return Rows(
        seconds=1e-3 * numbers(t, "latency")[mask],
        num_bytes=positions * 2 * kv_heads * dim * (2 if cache == "bfloat16" else 1),
        flops=4 * positions * heads * dim,
        depth=zeros,
        units=batch * kv_heads,
        wide=zeros > 0,
        shapes=tuple(zip(heads, kv_heads, dim, strict=True)),
    )


def mla_rows(tables: Path, cache: str) -> Rows:
    """Absorbed decode attention over a latent of 512 and a rotary key of 64."""
    t = read_table(tables, "generation_mla_perf")
    mask = t["kv_cache_dtype"] == cache
    batch, heads = numbers(t, "batch_size")[mask], numbers(t, "num_heads")[mask]
    positions = batch * (numbers(t, "isl") + numbers(t, "step"))[mask]
    zeros = np.zeros_like(batch)
    return Rows(
        seconds=1e-3 * numbers(t, "latency")[mask],
        num_bytes=positions * 576 * (2 if cache == "bfloat16" else 1),
        flops=2 * positions * heads * (576 + 512),
        depth=zeros,
        units=batch,
        wide=zeros > 0,
        shapes=tuple((h,) for h in heads),
    )


def moe_rows(tables: Path, dtype: str, bytes_per_weight: float) -> Rows:
    """Fused experts of up to 4,096 tokens, at least 8 local experts of width 512, balanced."""
    t = read_table(tables, "moe_perf")
    tokens, hidden, inter, top_k, experts, group, split = (
        numbers(t, key)
        for key in (
            "num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_ep_size",
            "moe_tp_size",
        )
    )  # fmt: skip
    mask = (t["moe_dtype"] == dtype) & (t["kernel_source"] == "sglang_fused_moe_triton")
    mask &= (t["distribution"] == "balanced") & (tokens <= 4096)
    mask &= (experts / group >= 8) & (inter / split >= 512)
    local, width = (experts / group)[mask], (inter / split)[mask]
    tokens, hidden, top_k, group = tokens[mask], hidden[mask], top_k[mask], group[mask]
    pairs = np.maximum(tokens * top_k / group, 1)
    weights = 3 * hidden * width
    return Rows(
        seconds=1e-3 * numbers(t, "latency")[mask],
        num_bytes=np.minimum(local, pairs) * weights * bytes_per_weight,
        flops=2 * pairs * weights,
        depth=np.zeros_like(tokens),
        units=tokens * hidden * top_k,
        wide=tokens > local,
        shapes=tuple(zip(hidden, top_k, experts[mask], strict=True)),
    )


OPERATIONS: dict[str, Callable[[Path], Rows]] = {
    "gemm.bfloat16": lambda tables: gemm_rows(tables, "bfloat16"),
    "gemm.fp8": lambda tables: gemm_rows(tables, "fp8_block"),
    "gqa.bfloat16": lambda tables: gqa_rows(tables, "bfloat16"),
    "gqa.fp8": lambda tables: gqa_rows(tables, "fp8"),
    "mla.bfloat16": lambda tables: mla_rows(tables, "bfloat16"),
    "mla.fp8": lambda tables: mla_rows(tables, "fp8"),
    "moe.bfloat16": lambda tables: moe_rows(tables, "bfloat16", 2.0),
    "moe.fp8": lambda tables: moe_rows(tables, "fp8_block", 1.0),
    "moe.mxfp4": lambda tables: moe_rows(tables, "w4a16_mxfp4", 0.5 + 1 / 32),
}


def fit(rows: Rows) -> OpLaw:
    """The law with the smallest relative errors; coefficients of what varies nowhere are 0."""
    from scipy.optimize import least_squares

    names = ["floor_s", "s_per_byte", "s_per_flop"]
    names += ["s_per_depth"] if rows.depth.any() else []
    names += ["s_per_unit"] if rows.units.any() else []
    names += ["s_per_byte_wide"] if rows.wide.any() else []
    absent = {name: 0.0 for name in ("s_per_depth", "s_per_unit") if name not in names}
    start = [getattr(START, name) or START.s_per_byte for name in names]

    def law(logs: Array) -> OpLaw:
        values = dict(zip(names, np.exp(logs[:-1]).tolist(), strict=True))
        return msgspec.structs.replace(START, **absent, **values, p=1 + float(np.exp(logs[-1])))

    found = least_squares(
        lambda logs: np.log(rows.predicted(law(logs)) / rows.seconds),
        np.log([*start, START.p - 1]),
        loss="soft_l1",
        f_scale=OUTLIER,
        bounds=([np.log(1e-20)] * len(names) + [-6], [0.0] * len(names) + [3]),
    )
    return law(found.x)


def left_out_errors(rows: Rows) -> Array:
    """Relative error of every row, predicted by a fit to other shapes."""
    shapes = sorted(set(rows.shapes))
    fold_of = {shape: i % NUM_FOLDS for i, shape in enumerate(shapes)}
    folds = np.array([fold_of[shape] for shape in rows.shapes])
    errors = np.zeros_like(rows.seconds)
    for fold in range(min(NUM_FOLDS, len(shapes))):
        own = rows.select(folds == fold)
        errors[folds == fold] = own.predicted(fit(rows.select(folds != fold))) / own.seconds - 1
    return np.abs(errors)


def summary(errors: Array) -> dict[str, float]:
    """median, p90 and worst of relative errors."""
    return {
        "median": round(float(np.median(errors)), 3),
        "p90": round(float(np.quantile(errors, 0.9)), 3),
        "worst": round(float(errors.max()), 3),
    }


def link_law(tables: Path) -> LinkLaw:
    """All-to-all of 2, 4 and 8 GPUs of a node: bytes that one sends, messages to its peers.

    message_size counts all elements that a GPU holds, of which it keeps its own part.
    """
    from scipy.optimize import least_squares

    t: Columns = read_table(tables, "nccl_perf")
    mask = (t["op_name"] == "alltoall") & (t["nccl_dtype"] == "half")
    peers = numbers(t, "num_gpus")[mask] - 1
    sent = 2 * numbers(t, "message_size")[mask] * peers / (peers + 1)
    measured = 1e-3 * numbers(t, "latency")[mask]

    def predicted(logs: Array) -> Array:
        latency, message, per_byte = np.exp(logs)
        return np.asarray(latency + message * peers + per_byte * sent)

    found = least_squares(
        lambda logs: np.log(predicted(logs) / measured),
        np.log([5e-6, 5e-7, 1 / 300e9]),
        loss="soft_l1",
        f_scale=OUTLIER,
    )
    latency, message, per_byte = (float(f"{value:.4g}") for value in np.exp(found.x))
    errors = np.abs(predicted(found.x) / measured - 1)
    return LinkLaw(
        latency_s=latency, message_s=message, s_per_byte=per_byte, errors=summary(errors)
    )


def rounded(law: OpLaw) -> OpLaw:
    """Four digits, which is more than the errors deserve."""
    values = {
        name: float(f"{value:.4g}")
        for name in law.__struct_fields__
        if isinstance(value := getattr(law, name), float)
    }
    return msgspec.structs.replace(law, **values)


def fit_device(tables: Path, device: str) -> tuple[Coefficients, list[dict[str, Any]]]:
    """Laws of a device and a line of the report for each."""
    laws, lines = {}, []
    for name, read in OPERATIONS.items():
        rows = read(tables)
        errors = summary(left_out_errors(rows))
        laws[name] = msgspec.structs.replace(rounded(fit(rows)), errors=errors)
        lines.append(
            {
                "device": device,
                "operation": name,
                "rows": len(rows.seconds),
                "shapes": len(set(rows.shapes)),
                **errors,
            }
        )
    intra = link_law(tables)
    lines.append(
        {"device": device, "operation": "all-to-all", "rows": 63, "shapes": 3, **intra.errors}
    )
    return Coefficients(device=device, source=SOURCE, laws=laws, intra=intra), lines


def measure(options: argparse.Namespace) -> Result:
    report = []
    for device in DEVICES:
        coefficients, lines = fit_device(options.tables / device, device)
        report += lines
        if options.write:
            text = msgspec.json.format(msgspec.json.encode(coefficients), indent=1)
            (DATA / "coefficients").mkdir(exist_ok=True)
            (DATA / "coefficients" / f"{device}.json").write_bytes(text + b"\n")
    return {"source": SOURCE, "rows": report}


if __name__ == "__main__":
    main(
        __doc__,
        measure,
        flag("--tables", type=Path, required=True, help="folder with one per device"),
        flag("--write", action="store_true", help="replace the shipped coefficients"),
    )

"""The paper's testbed, and two calibrations of time that are never mixed.

fitted  the oracle with laws fitted to kernels on H100: what those kernels and links should do.
paper   the same laws plus what the paper's own throughput implies beyond them: a constant per layer
        and a time per token of an attention instance. Both are fitted to the four pairs of shape
        and throughput that the paper prints for its own system, and then hold for every system
        alike; no number of a baseline enters.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Literal, NamedTuple

import msgspec
import numpy as np
from benchmarks.figures.routing import Amax, like_paper

from janus_moe.perf import Oracle

SYSTEM, MODEL = "h100_sxm", "deepseek-v2"
PROMPT, OUTPUT = 16, 256
CONTEXT = PROMPT + OUTPUT / 2
OBJECTIVES_S = (0.15, 0.2)

CalibrationName = Literal["fitted", "paper"]
CALIBRATIONS: tuple[CalibrationName, ...] = ("fitted", "paper")


class Point(NamedTuple):
    """A shape of DeepSeek-V2 whose throughput per GPU the paper prints (figure 9)."""

    batch: int
    num_attention: int
    num_expert: int
    tokens_per_s_per_gpu: float

    @property
    def tpot_s(self) -> float:
        return self.batch / (self.tokens_per_s_per_gpu * (self.num_attention + self.num_expert))


POINTS = (Point(64, 1, 6, 99), Point(256, 5, 10, 170), Point(256, 2, 6, 240), Point(512, 4, 6, 340))


class Surplus(NamedTuple):
    """Seconds per layer that the fitted laws do not explain. token_s: per token of an attention
    instance."""

    layer_s: float
    token_s: float


@lru_cache(None)
def oracle(calibration: CalibrationName, model: str = MODEL) -> Oracle:
    found = Oracle.build(model, SYSTEM)
    return found if calibration == "fitted" else slowed(found, paper_surplus())


def slowed(one: Oracle, surplus: Surplus) -> Oracle:
    """The oracle with the surplus on the attention side of every layer."""
    over = replace(
        one.overheads, attention_layer_s=one.overheads.attention_layer_s + surplus.layer_s
    )
    side, laws = one.attention_side, dict(one.attention_side.coefficients.laws)
    heads = getattr(one.model.attention, "num_kv_heads", 1)  # a law's unit: token * KV head
    for name, law in laws.items():
        if name.startswith(("mla", "gqa")):
            per_unit = law.s_per_unit + surplus.token_s / heads
            laws[name] = msgspec.structs.replace(law, s_per_unit=per_unit)
    coefficients = msgspec.structs.replace(side.coefficients, laws=laws)
    return replace(one, overheads=over, attention_side=replace(side, coefficients=coefficients))


@lru_cache(None)
def paper_surplus() -> Surplus:
    """Least squares on `POINTS`: seconds beyond the fitted laws."""
    one, amax = Oracle.build(MODEL, SYSTEM), paper_amax()
    rows, rest = [], []
    for point in POINTS:
        activated = amax.of(point.num_expert, point.batch, "aebs", "coactivation")
        load = one.pools_load(
            point.batch, CONTEXT, point.num_attention, point.num_expert, activated
        )
        layers = one.model.num_layers
        rows.append([layers, layers * point.batch / point.num_attention])
        rest.append(point.tpot_s - float(one.step_s(load)))
    layer_s, token_s = np.linalg.lstsq(np.array(rows), np.array(rest), rcond=None)[0].tolist()
    return Surplus(layer_s, token_s)


@lru_cache(None)
def paper_amax() -> Amax:
    return Amax(like_paper())

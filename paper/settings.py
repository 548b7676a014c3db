"""The paper's testbed, and two calibrations of time that are never mixed.

fitted  the oracle with laws fitted to kernels on H100: what those kernels and links should do.
paper   the same plus what the paper's own throughput implies beyond it
        (`janus_moe.planner.search.paper`): a constant per layer, and a time per token of an
        attention instance. Both are fitted to four shapes of the paper's own system, and then hold
        for every system alike; no number of a baseline enters.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Literal

import msgspec
import numpy as np

from janus_moe.planner.latency import Oracle
from janus_moe.planner.latency.arrays import Array, Numbers
from janus_moe.planner.search.paper import TOKEN_S, calibrated
from paper.routing import Amax, like_paper

SYSTEM, MODEL = "h100_sxm", "deepseek-v2"
PROMPT, OUTPUT = 16, 256
CONTEXT = PROMPT + OUTPUT / 2
OBJECTIVES_S = (0.15, 0.2)

CalibrationName = Literal["fitted", "paper"]
CALIBRATIONS: tuple[CalibrationName, ...] = ("fitted", "paper")


@lru_cache(None)
def oracle(calibration: CalibrationName, model: str = MODEL) -> Oracle:
    found = Oracle.build(model, SYSTEM)
    return found if calibration == "fitted" else as_busy_time(calibrated(found, "paper"))


@lru_cache(None)
def idle_surplus_oracle(model: str = MODEL) -> Oracle:
    """`paper`, but the surplus per token is waiting: it takes as long and keeps nobody busy."""
    return calibrated(Oracle.build(model, SYSTEM), "paper")


def as_busy_time(one: Oracle) -> Oracle:
    """The surplus per token as time of the attention kernel: alpha * b in the paper's own latency
    model. Steps take as long; who balances the pools' busy times sees it."""
    over, side = one.overheads, one.attention_side
    heads = one.model.attention[0].cache_heads  # the law's unit: token * KV head
    laws = {
        name: msgspec.structs.replace(
            law, s_per_unit=law.s_per_unit + over.attention_token_s / heads
        )
        if name.startswith(("mla", "gqa"))
        else law
        for name, law in side.coefficients.laws.items()
    }
    busy = replace(side, coefficients=msgspec.structs.replace(side.coefficients, laws=laws))
    return replace(one, overheads=replace(over, attention_token_s=0.0), attention_side=busy)


@dataclass(frozen=True, kw_only=True)
class UndividedOracle(Oracle):
    """GPUs that share the heads of an attention instance do not share its surplus per token."""

    surplus_s: float = 0.0

    def attention_layer_s(self, tokens: Numbers, context: Numbers, tp: Numbers = 1) -> Array:
        undivided = self.surplus_s * np.asarray(tokens) * (1 - 1 / np.asarray(tp))
        return np.asarray(super().attention_layer_s(tokens, context, tp) + undivided)


@lru_cache(None)
def undivided_oracle(model: str = MODEL) -> Oracle:
    """`paper`, but for that."""
    one = oracle("paper", model)
    known = {field.name: getattr(one, field.name) for field in fields(Oracle)}
    return UndividedOracle(**known, surplus_s=TOKEN_S)


@lru_cache(None)
def paper_amax() -> Amax:
    return Amax(like_paper())

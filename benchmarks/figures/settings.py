"""The paper's testbed, and two calibrations of time that are never mixed.

fitted  the oracle with laws fitted to kernels on H100: what those kernels and links should do.
paper   the same plus what the paper's own throughput implies beyond it (`janus_moe.plan.paper`): a
        constant per layer, and a time per token of an attention instance. Both are fitted to four
        shapes of the paper's own system, and then hold for every system alike; no number of a
        baseline enters.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

from benchmarks.figures.routing import Amax, like_paper

from janus_moe.perf import Oracle
from janus_moe.plan.paper import calibrated

SYSTEM, MODEL = "h100_sxm", "deepseek-v2"
PROMPT, OUTPUT = 16, 256
CONTEXT = PROMPT + OUTPUT / 2
OBJECTIVES_S = (0.15, 0.2)

CalibrationName = Literal["fitted", "paper"]
CALIBRATIONS: tuple[CalibrationName, ...] = ("fitted", "paper")


@lru_cache(None)
def oracle(calibration: CalibrationName, model: str = MODEL) -> Oracle:
    found = Oracle.build(model, SYSTEM)
    return found if calibration == "fitted" else calibrated(found, "paper")


@lru_cache(None)
def paper_amax() -> Amax:
    return Amax(like_paper())

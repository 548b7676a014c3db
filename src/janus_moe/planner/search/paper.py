"""The assumptions behind the figures of arXiv 2512.13525, kept apart from honest estimates.

The published throughputs imply 92 to 151 ms per token where devices and links need a quarter to a
third of that: the rest grows with the layers and with the tokens of an attention instance. `paper`
adds it as constants, fitted to the published points by `python -m paper.shapes`. A plan
made with them says so; they are no statement about any other system.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from janus_moe.errors import ConfigError
from janus_moe.planner.latency import Oracle

Calibration = Literal["honest", "paper"]


@dataclass(frozen=True, slots=True)
class PublishedPoint:
    """A shape in figures 9 and 16 at a batch.

    tokens_per_s_per_gpu: read from figure 9.
    """

    num_attention: int
    num_expert: int
    batch: int
    tokens_per_s_per_gpu: float

    @property
    def tpot_s(self) -> float:
        """TPG = B / (TPOT * GPUs), turned around."""
        gpus = self.num_attention + self.num_expert
        return self.batch / (self.tokens_per_s_per_gpu * gpus)


PUBLISHED = (
    PublishedPoint(1, 6, 64, 99.0),
    PublishedPoint(5, 10, 256, 170.0),
    PublishedPoint(2, 6, 256, 240.0),
    PublishedPoint(4, 6, 512, 340.0),
)

PUBLISHED_AMAX = {16: 8.46, 64: 15.66, 256: 19.98, 512: 20.47}
"""Figure 17, six expert instances: batch -> activated experts of the busiest one."""

LAYER_S = 0.63e-3
TOKEN_S = 6.9e-6
"""Seconds per MoE layer, and per layer and token of an attention instance, that the published
points have beyond the honest estimate."""

ROUTING_SPREAD = 2.0
"""Log-normal popularity whose activated experts come closest to `PUBLISHED_AMAX`."""

SLOTS = 27
"""Experts per instance and layer that 80 GB hold of DeepSeek-V2 (section 7)."""


def calibrated(oracle: Oracle, calibration: Calibration) -> Oracle:
    """The oracle with what the calibration adds."""
    if calibration not in get_args(Calibration):
        names = ", ".join(get_args(Calibration))
        raise ConfigError(f"the calibration must be one of {names}, got {calibration!r}")
    if calibration == "honest":
        return oracle
    over = oracle.overheads
    more = replace(
        over,
        attention_layer_s=over.attention_layer_s + LAYER_S,
        attention_token_s=over.attention_token_s + TOKEN_S,
    )
    return replace(oracle, overheads=more)


def note(calibration: Calibration) -> str:
    """What to print beside every figure made with it; empty for honest ones."""
    if calibration == "honest":
        return ""
    return (
        f"paper calibration: {1e3 * LAYER_S:.2f} ms per layer and {1e6 * TOKEN_S:.1f} us per layer "
        "and token of an attention instance are added to reproduce published figures"
    )

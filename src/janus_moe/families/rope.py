"""Static rotary frequencies of every supported kind, in the float32 that models were trained with.

The formulas and the order of their operations are those of transformers, so that the numbers are,
too. This module knows no architecture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from janus_moe.families.config import Config
from janus_moe.spec import RopeSpec

RopeLayout = Literal["halves", "interleaved"]
Frequencies = tuple[NDArray[np.float32], float]
"""Inverse frequencies, and the factor on cos and sin."""

DEFAULT_THETA = 10000.0


def rope_spec(
    config: Config, rotary_dim: int, layout: RopeLayout, theta: float = DEFAULT_THETA
) -> RopeSpec:
    """The rotation that a config asks for; an unknown kind is an obstacle.

    rotary_dim: dimensions of a head that rotate.
    theta: base where the config has none.
    """
    config.require(rotary_dim % 2 == 0, f"the rotary dimension must be even, found {rotary_dim}")
    parameters = config.part("rope_scaling", "rope_parameters")
    kind = rope_type(config)
    config.serve_only_if(
        kind in ROPE_TYPES,
        f"rope type {kind!r} is not supported (its frequencies change with the sequence length), "
        f"only {', '.join(sorted(ROPE_TYPES))}",
    )
    base = parameters.positive("rope_theta", config.positive("rope_theta", theta))
    config.require(base > 1, f"rope_theta must be above 1, found {base}")
    share = parameters.number("partial_rotary_factor", config.number("partial_rotary_factor", 1.0))
    if kind != "proportional":
        config.serve_only_if(
            share == 1.0,
            f"rope_parameters rotate {int(share * rotary_dim)} of {rotary_dim} dimensions; partial "
            "rotation is not supported",
        )
    frequencies = ROPE_TYPES.get(kind, _default)
    inv_freq, factor = frequencies(_Rotation(config, parameters, base, share, rotary_dim))
    return RopeSpec(
        inv_freq=tuple(inv_freq.tolist()), attention_factor=float(factor), layout=layout
    )


def rope_type(config: Config) -> str:
    """The kind of rotation, in the older or the newer spelling."""
    parameters = config.part("rope_scaling", "rope_parameters")
    return str(parameters.get("rope_type", parameters.get("type", "default")))


def yarn_softmax_scale(config: Config, scale: float) -> float:
    """A softmax scale with YaRN's mscale, where the config asks for it (DeepSeek)."""
    parameters = config.part("rope_scaling", "rope_parameters")
    all_dim = parameters.number("mscale_all_dim", 0.0)
    if rope_type(config) == "default" or not all_dim:
        return scale
    mscale = _mscale(parameters.positive("factor"), all_dim)
    return scale * mscale * mscale


@dataclass(frozen=True)
class _Rotation:
    """What the formulas read.

    config: the whole config.
    parameters: its part about rotation.
    base: of the powers.
    share: of the dimensions that rotate, for kinds that take a part.
    dim: dimensions of a head.
    """

    config: Config
    parameters: Config
    base: float
    share: float
    dim: int

    @property
    def longest(self) -> float:
        """Positions that the model takes."""
        return self.config.positive("max_position_embeddings")

    @property
    def trained_positions(self) -> float:
        """Positions that the unscaled model was trained with."""
        key = "original_max_position_embeddings"
        return self.config.positive(key, self.parameters.positive(key, self.longest))

    def powers(self, num_angles: int | None = None) -> NDArray[np.float32]:
        """[num_angles] base ** (2i / dim), rounded to float32; None means all angles."""
        count = self.dim // 2 if num_angles is None else num_angles
        exponents = np.arange(0, 2 * count, 2, dtype=np.float32) / np.float32(self.dim)
        return (np.float64(self.base) ** exponents.astype(np.float64)).astype(np.float32)


def _default(rotation: _Rotation) -> Frequencies:
    return 1.0 / rotation.powers(), 1.0


def _linear(rotation: _Rotation) -> Frequencies:
    return 1.0 / rotation.powers() / rotation.parameters.positive("factor"), 1.0


def _proportional(rotation: _Rotation) -> Frequencies:
    """The first share of the angles turns, the others stand still."""
    turning = int(rotation.share * rotation.dim // 2)
    inv_freq = np.zeros(rotation.dim // 2, np.float32)
    inv_freq[:turning] = 1.0 / rotation.powers(turning)
    return inv_freq / rotation.parameters.positive("factor", 1.0), 1.0


def _llama3(rotation: _Rotation) -> Frequencies:
    """Long waves are stretched, short ones kept, those between mixed."""
    parameters, positions = rotation.parameters, rotation.trained_positions
    factor = parameters.positive("factor")
    low, high = parameters.positive("low_freq_factor"), parameters.positive("high_freq_factor")
    parameters.require(low != high, "low_freq_factor and high_freq_factor must differ")
    inv_freq = 1.0 / rotation.powers()
    wavelen = 2 * math.pi / inv_freq
    stretched = np.where(wavelen > positions / low, inv_freq / factor, inv_freq)
    smooth = (positions / wavelen - low) / (high - low)
    mixed = (1 - smooth) * stretched / factor + smooth * stretched
    between = ~(wavelen < positions / high) & ~(wavelen > positions / low)
    return np.where(between, mixed, stretched).astype(np.float32), 1.0


def _yarn(rotation: _Rotation) -> Frequencies:
    """arXiv 2309.00071: interpolates long waves, keeps short ones, a ramp between."""
    parameters, dim = rotation.parameters, rotation.dim
    positions = rotation.trained_positions
    factor = parameters.positive("factor", rotation.longest / positions)

    def turning(rotations: float) -> float:
        """The dimension whose wave turns so often within the trained positions."""
        waves = math.log(positions / (rotations * 2 * math.pi))
        return (dim * waves) / (2 * math.log(rotation.base))

    low = turning(parameters.positive("beta_fast", 32.0))
    high = turning(parameters.positive("beta_slow", 1.0))
    if parameters.flag("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = 0.001 if low == high else high - low
    ramp = np.clip((np.arange(dim // 2, dtype=np.float32) - low) / width, 0, 1)
    powers, kept = rotation.powers(), 1 - ramp
    inv_freq = 1.0 / (factor * powers) * (1 - kept) + 1.0 / powers * kept
    return inv_freq.astype(np.float32), _yarn_factor(parameters, factor)


def _yarn_factor(parameters: Config, factor: float) -> float:
    if parameters.get("attention_factor") is not None:
        return parameters.number("attention_factor")
    mscale, all_dim = parameters.number("mscale", 0.0), parameters.number("mscale_all_dim", 0.0)
    if mscale and all_dim:
        return _mscale(factor, mscale) / _mscale(factor, all_dim)
    return _mscale(factor, 1.0)


def _mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


ROPE_TYPES: Mapping[str, Callable[[_Rotation], Frequencies]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "proportional": _proportional,
    "yarn": _yarn,
}

"""Placements by name, for statistics of any number of layers and instances of any size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from janus_moe.errors import ConfigError
from janus_moe.policy.placement import coactivation as coactivation_method
from janus_moe.policy.placement import eplb, search
from janus_moe.policy.placement.sizing import usable_capacity
from janus_moe.policy.placement.value import Placement

PlacementMethod = Literal["janus", "coactivation", "eplb"]
"""janus         room for the activation scheduler, see `search`; load = P(active)
coactivation  experts that tokens use together kept apart, see `coactivation`; load = tokens
eplb          balanced tokens, see `eplb`; load = tokens
"""


def place_experts(
    method: PlacementMethod,
    load: ArrayLike,
    capacity: Sequence[int],
    *,
    coactivation: ArrayLike | None = None,
    num_groups: int = 1,
    num_nodes: int = 1,
    epoch: int = 0,
) -> Placement:
    """Fill every slot; equal input gives an equal placement.

    load: [layers, experts] numbers >= 0 on any scale; what they should mean depends on the method.
    capacity: [instances] slots per layer, 1 or more; those beyond one per expert stay empty.
    coactivation: [layers, experts, experts], for `coactivation` only.
    num_groups, num_nodes: for `eplb` only; more than one node makes it hierarchical.
    """
    if method not in get_args(PlacementMethod):
        names = ", ".join(get_args(PlacementMethod))
        raise ConfigError(f"placement method must be one of {names}; got {method!r}")
    weights = as_load(load)
    num_layers, num_experts = weights.shape
    usable = usable_capacity(num_experts, capacity)
    if method == "coactivation":
        together = _as_coactivation(coactivation, num_layers, num_experts)
        slots = [
            coactivation_method.place_layer(row, pairs, usable)
            for row, pairs in zip(weights, together, strict=True)
        ]
    elif method == "eplb":
        slots = [eplb.place_layer(row, usable, num_groups, num_nodes) for row in weights]
    else:
        slots = [search.place_layer(row, usable) for row in weights]
    return Placement(epoch=epoch, num_experts=num_experts, slots=tuple(slots))


def as_load(load: ArrayLike) -> NDArray[np.float64]:
    weights = np.asarray(load, np.float64)
    if weights.ndim != 2 or 0 in weights.shape:
        raise ConfigError(f"load must be [layers, experts], got shape {weights.shape}")
    wrong = np.argwhere(~(np.isfinite(weights) & (weights >= 0)))
    if wrong.size:
        layer, expert = wrong[0]
        raise ConfigError(
            f"load of expert {expert} in layer {layer} is {weights[layer, expert]}; it must be a "
            "finite number >= 0"
        )
    return weights


def _as_coactivation(
    coactivation: ArrayLike | None, num_layers: int, num_experts: int
) -> NDArray[np.float64]:
    if coactivation is None:
        raise ConfigError("the method coactivation needs co-activation statistics; pass them")
    together = np.asarray(coactivation, np.float64)
    if together.shape != (num_layers, num_experts, num_experts):
        raise ConfigError(
            f"coactivation must be {num_layers} layers x {num_experts} x {num_experts} experts, "
            f"got shape {together.shape}"
        )
    return together

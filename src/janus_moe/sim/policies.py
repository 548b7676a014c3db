"""Policies of scaling by name, over a simple set of deployments.

static:SIZE  one deployment for all time: 2A6E, or EP16 (monolithic expert parallelism)
janus        attention and expert pools of any sizes, the fewest GPUs that meet the objective
monolithic   expert parallelism on 8, 16, 32 or 64 GPUs, the fewest that meet it
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from janus_moe.errors import ConfigError
from janus_moe.sim.deployment import Deployment, Deployments
from janus_moe.sim.scaling import FewestGpus, ScalingPolicy, Static
from janus_moe.sim.step_table import PoolSize

MONOLITHIC_SIZES = (8, 16, 32, 64)
KNOWN = "static:SIZE, janus, monolithic"


def named_policy(
    name: str, deployments: Deployments, max_gpus: int, tpot_slo_s: float, headroom: float
) -> ScalingPolicy:
    """Raises ConfigError for an unknown name, and when nothing fits."""
    if not tpot_slo_s > 0 or not headroom > 0 or max_gpus < 1:
        raise ConfigError(
            f"a policy needs an objective, a headroom and GPUs above 0, got {tpot_slo_s} s, "
            f"{headroom} and {max_gpus}"
        )
    if name.startswith("static:"):
        return Static(_exactly(deployments, parse_size(name.removeprefix("static:"))), name)
    match name:
        case "janus":
            sizes = _pool_sizes(deployments, max_gpus)
        case "monolithic":
            sizes = [PoolSize(n, 0) for n in MONOLITHIC_SIZES if n <= max_gpus]
        case _:
            raise ConfigError(f"there is no policy {name!r}; known are {KNOWN}")
    found = _possible(deployments, sizes)
    if not found:
        raise ConfigError(
            f"policy {name}: {deployments.oracle.model.title} fits on no deployment of up to "
            f"{max_gpus} {deployments.oracle.attention_side.device.title} GPUs; allow more, or "
            "take a device with more memory"
        )
    return FewestGpus(candidates=found, tpot_slo_s=tpot_slo_s, headroom=headroom, name=name)


def parse_size(text: str) -> PoolSize:
    """2A6E or EP16."""
    pools = re.fullmatch(r"([1-9]\d{0,3})A([1-9]\d{0,3})E", text)
    if pools:
        return PoolSize(int(pools[1]), int(pools[2]))
    whole = re.fullmatch(r"EP([1-9]\d{0,3})", text)
    if whole:
        return PoolSize(int(whole[1]), 0)
    raise ConfigError(f"a size is written 2A6E or EP16, got {text!r}")


def _exactly(deployments: Deployments, size: PoolSize) -> Deployment:
    found = deployments.of(size)
    if found is None:
        oracle = deployments.oracle
        raise ConfigError(
            f"{oracle.model.title} as {size} does not fit: it has {oracle.model.num_experts} "
            f"experts per layer, {oracle.model.expert_bytes() / 1e6:.1f} MB each in "
            f"{oracle.model.num_moe_layers} layers, and a GPU has "
            f"{oracle.expert_side.device.memory_bytes / 2**30:.0f} GiB; use more instances"
        )
    return found


def _pool_sizes(deployments: Deployments, max_gpus: int) -> list[PoolSize]:
    """All sizes up to 16 of each; beyond, every second, fourth ... so that there are hundreds."""
    return [
        PoolSize(attention, expert)
        for attention in _thinned(max_gpus)
        for expert in _thinned(min(max_gpus, deployments.oracle.model.num_experts))
        if attention + expert <= max_gpus
    ]


def _thinned(largest: int) -> list[int]:
    values, step = [1], 1
    while values[-1] + step <= largest:
        values.append(values[-1] + step)
        if values[-1] == 16 * step:
            step *= 2
    return values


def _possible(deployments: Deployments, sizes: Iterable[PoolSize]) -> list[Deployment]:
    return [found for size in sizes if (found := deployments.of(size)) is not None]

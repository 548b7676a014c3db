"""Policies of scaling by name.

static:SIZE  one deployment for all time: 2A6E, or EP16 (monolithic expert parallelism), EP16TP8
static       what `janus` takes for the busiest interval of the workload, for all time
others       planners of `janus_moe.planner.search.baselines`: a new shape when the demand asks
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import get_args

from janus_moe.errors import ConfigError
from janus_moe.planner.search.baselines import BaselineName, BaselinePlanner
from janus_moe.planner.search.problem import Problem
from janus_moe.planner.simulation.deployment import Deployments, SimDeployment
from janus_moe.planner.simulation.planned import PlannedPolicy
from janus_moe.planner.simulation.scaling import ScalingPolicy, StaticPolicy
from janus_moe.planner.simulation.simulate import demand_between
from janus_moe.planner.simulation.step_table import PoolSize
from janus_moe.planner.simulation.workload import RequestTrace

PLANNERS = get_args(BaselineName)
KNOWN = f"{', '.join(PLANNERS)}, static, static:SIZE"


@dataclass(frozen=True, kw_only=True)
class PolicyContext:
    """What all policies choose from.

    deployments: makes what a policy decides on.
    problem: the question to planners, see `planned.planning_problem`.
    headroom, rate_quantile: as in `planned.PlannedPolicy`.
    tpot_margin: share of the objective that plans leave free, from 0 to below 1.
    changes: (field, value) of the planners' styles to change, where they have the field.
    """

    deployments: Deployments
    problem: Problem
    headroom: float = 1.3
    rate_quantile: float | None = None
    tpot_margin: float = 0.0
    changes: tuple[tuple[str, object], ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.tpot_margin < 1:
            raise ConfigError(
                f"the share of the objective left free is from 0 to below 1, got {self.tpot_margin}"
            )


def named_policy(
    name: str, choices: PolicyContext, workload: RequestTrace, interval_s: float = 900.0
) -> ScalingPolicy:
    """Raises ConfigError for an unknown name, and when nothing fits."""
    if name.startswith("static:"):
        return _static(name, _exactly(choices.deployments, parse_size(name[len("static:") :])))
    if name != "static":
        if name not in PLANNERS:
            raise ConfigError(f"there is no policy {name!r}; known are {KNOWN}")
        problem = choices.problem
        if choices.tpot_margin:
            problem = replace(problem, tpot_s=(1 - choices.tpot_margin) * problem.tpot_s)
        planner = BaselinePlanner.of(name, problem, **dict(choices.changes))
        return PlannedPolicy(planner, choices.deployments, choices.headroom, choices.rate_quantile)
    janus = named_policy("janus", choices, workload, interval_s)
    number = int(workload.duration_s // interval_s) + 1
    demands = [
        demand_between(workload, i * interval_s, (i + 1) * interval_s) for i in range(number)
    ]
    busiest = max(demands, key=lambda demand: demand.output_tokens_per_s)
    return _static(name, janus.decide(0.0, busiest, None).deployment)


def parse_size(text: str) -> PoolSize:
    """2A6E, EP16, or EP16TP8 with the heads of attention on 8 GPUs each."""
    pools = re.fullmatch(r"([1-9]\d{0,3})A([1-9]\d{0,3})E", text)
    if pools:
        return PoolSize(int(pools[1]), int(pools[2]))
    whole = re.fullmatch(r"EP([1-9]\d{0,3})(?:TP([1-9]\d?))?", text)
    if whole:
        gpus, tp = int(whole[1]), int(whole[2] or 1)
        if gpus % tp:
            raise ConfigError(f"{tp} GPUs that share attention must divide {gpus}, got {text!r}")
        return PoolSize(gpus // tp, 0, tp)
    raise ConfigError(f"a size is written 2A6E, EP16 or EP16TP8, got {text!r}")


def _static(name: str, one: SimDeployment) -> StaticPolicy:
    return StaticPolicy(one, name, (f"{name}: {one.name} for all time", one.how))


def _exactly(deployments: Deployments, size: PoolSize) -> SimDeployment:
    found = deployments.of(size)
    if found is None:
        oracle = deployments.oracle
        raise ConfigError(
            f"{oracle.model.name} as {size} does not fit: it has {oracle.model.moe.num_experts} "
            f"experts per layer, {oracle.model.expert_bytes / 1e6:.1f} MB each in "
            f"{oracle.model.num_moe_layers} layers, and a GPU has "
            f"{oracle.expert_side.device.memory_bytes / 2**30:.0f} GiB; use more instances"
        )
    return found

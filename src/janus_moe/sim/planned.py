"""Planners as policies of scaling: each decides on shapes of its own kind for the demand it sees.

A decision asks the planner for the fewest GPUs at `headroom` times the mean rate of the interval
before, or the rate of its busiest minute if that is asked for and higher, plus what serves the
requests that wait within `DRAIN_S`, with the mean lengths of requests. What it answers is simulated
in its own style: slots, scheduling policy with its placement, gating, exchange plan, micro-batches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np

from janus_moe.errors import ConfigError
from janus_moe.perf import Oracle
from janus_moe.plan import answers
from janus_moe.plan.activation import Remembered
from janus_moe.plan.baselines import BaselinePlanner
from janus_moe.plan.problem import Batching, Problem, Rate
from janus_moe.plan.problem import Workload as Means
from janus_moe.plan.sampled import SampledActivation
from janus_moe.policy.estimate import Sampler
from janus_moe.sim.deployment import Deployment, Deployments, Style
from janus_moe.sim.scaling import Choice, Demand
from janus_moe.sim.state import Limits
from janus_moe.sim.step_table import PoolSize

Provision = Literal["mean", "peak"]

OBSERVED_TOKENS = 16_384
OPTIONS = 8
"""Equally cheap shapes among which the present one is looked for, to spare a change."""
RATE_STEP, LENGTH_STEP = 1.02, 1.05
"""Demands are rounded up to powers of these, so that few questions are asked twice."""
DRAIN_S = 300.0
LEAST_TOKENS_PER_S = 1e-3


def planning_problem(
    oracle: Oracle, sample: Sampler, limits: Limits, tpot_s: float, max_gpus: int, seed: int = 0
) -> Problem:
    """The question that demands are put into. sample: one layer's router."""
    model = oracle.model
    ids = sample(OBSERVED_TOKENS, np.random.default_rng(seed))
    counts = np.bincount(ids.ravel(), minlength=model.num_experts)[None, :]
    source = SampledActivation("sampled routing", [sample], counts, OBSERVED_TOKENS, seed=seed)
    return Problem(
        oracle=oracle,
        activation=Remembered(source),
        workload=Means(isl=1, osl=1),
        demand=Rate(1.0),
        tpot_s=tpot_s,
        max_gpus=max_gpus,
        batching=Batching(
            max_sequences=limits.max_num_seqs, max_prompt_tokens=limits.max_num_batched_tokens
        ),
    )


@dataclass(frozen=True, eq=False)
class Planned:
    """One planner. headroom: rate to provide for over the mean rate that was seen. provide_for:
    peak: at least the rate of the busiest minute."""

    planner: BaselinePlanner
    deployments: Deployments
    headroom: float = 1.3
    provide_for: Provision = "mean"
    _known: dict[tuple[int, int, int], tuple[tuple[answers.Deployment, ...], bool]] = field(
        default_factory=dict, repr=False
    )

    def __post_init__(self) -> None:
        if not 0 < self.headroom < math.inf:
            raise ConfigError(f"a policy needs a headroom above 0, got {self.headroom}")

    @property
    def name(self) -> str:
        return self.planner.name

    @cached_property
    def lines(self) -> tuple[str, ...]:
        problem = self.planner.problem
        return (
            *self.planner.config.lines(),
            f"objective: {1e3 * problem.tpot_s:g} ms per token on up to {problem.max_gpus} GPUs",
            f"demand: {self.headroom:g} times the mean rate of the interval before"
            + (", or its busiest minute" if self.provide_for == "peak" else "")
            + f", and those who wait within {DRAIN_S:g} s",
            f"a_max: {problem.activation.name}",
        )

    def decide(self, now_s: float, demand: Demand, current: Deployment | None) -> Choice:
        """Of equally cheap shapes the present one, else the fastest. Where nothing keeps up, what
        comes closest."""
        found, enough = self._answers(demand)
        chosen = found[0]
        for one in found:
            if current and one.cost == chosen.cost and _size(one) == current.size:
                chosen = one
                break
        return Choice(self._built(chosen), enough)

    def _answers(self, demand: Demand) -> tuple[tuple[answers.Deployment, ...], bool]:
        waiting = demand.num_waiting * demand.output_tokens / DRAIN_S
        rate = self.headroom * demand.output_tokens_per_s
        if self.provide_for == "peak":
            rate = max(rate, demand.peak_requests_per_s * demand.output_tokens)
        rate = max(rate + waiting, LEAST_TOKENS_PER_S)
        key = (
            _steps_up(rate, RATE_STEP),
            _steps_up(demand.prompt_tokens, LENGTH_STEP),
            _steps_up(demand.output_tokens, LENGTH_STEP),
        )
        if key not in self._known:
            question = replace(
                self.planner.problem,
                demand=Rate(RATE_STEP ** key[0]),
                workload=Means(isl=LENGTH_STEP ** key[1], osl=LENGTH_STEP ** key[2]),
            )
            self._known[key] = self._ask(question)
        return self._known[key]

    def _ask(self, question: Problem) -> tuple[tuple[answers.Deployment, ...], bool]:
        found = self.planner.options(question, OPTIONS)
        if not isinstance(found, answers.Infeasible):
            return tuple(found), True
        if found.nearest is None:
            raise ConfigError(f"policy {self.name}: {found.reason}")
        return (found.nearest,), False

    def _built(self, one: answers.Deployment) -> Deployment:
        style = Style(slots=one.slots, policy=one.policy, micro_batches=one.micro_batches)
        if one.plan != "all-to-all":
            style = replace(style, plan=one.plan, gating=one.gating)
        built = self.deployments.of(_size(one), style)
        if built is None:
            raise ConfigError(
                f"policy {self.name}: the planner's {one.shape} with {one.slots} slots leaves no "
                "room for KV here; use devices with more memory"
            )
        return built


def _size(one: answers.Deployment) -> PoolSize:
    return PoolSize(one.num_attention, 0 if one.kind == "monolithic" else one.num_expert)


def _steps_up(value: float, step: float) -> int:
    """The least whole power of `step` that is not below `value`."""
    return math.ceil(math.log(value) / math.log(step) - 1e-9)

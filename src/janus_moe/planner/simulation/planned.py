"""Planners as policies of scaling: each decides on shapes of its own kind for the demand it sees.

A decision asks the planner for the fewest GPUs for

    rate = max(headroom * max(mean, quantile) + waiting / DRAIN_S, running / (output * objective))

requests per second: the mean rate of the interval before, a quantile of the minutes looked back at
if that is asked for and higher, those who wait, and what keeps the requests that are under way
within the objective (a batch B needs B / TPOT tokens per second). Lengths are the means that were
seen. What the planner answers is simulated in its own style: slots, scheduling policy with its
placement, gating, exchange plan, micro-batches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from janus_moe.errors import ConfigError
from janus_moe.planner.latency import Oracle
from janus_moe.planner.search import answers
from janus_moe.planner.search.activation import CachedActivation
from janus_moe.planner.search.baselines import BaselinePlanner
from janus_moe.planner.search.problem import Batching, Problem, Rate
from janus_moe.planner.search.problem import RequestLengths as Means
from janus_moe.planner.search.sampled import SampledActivation
from janus_moe.planner.simulation.deployment import Deployments, DeploymentStyle, SimDeployment
from janus_moe.planner.simulation.scaling import ObservedDemand, ScalingTarget
from janus_moe.planner.simulation.state import BatchLimits
from janus_moe.planner.simulation.step_table import PoolSize
from janus_moe.policy.estimate import BatchSampler

OBSERVED_TOKENS = 16_384
OPTIONS = 8
"""Equally cheap shapes among which the present one is looked for, to spare a change."""
RATE_STEP, LENGTH_STEP = 1.02, 1.05
"""Demands are rounded up to powers of these, so that few questions are asked twice."""
DRAIN_S = 300.0
LEAST_TOKENS_PER_S = 1e-3


def planning_problem(
    oracle: Oracle,
    sample: BatchSampler,
    limits: BatchLimits,
    tpot_s: float,
    max_gpus: int,
    seed: int = 0,
) -> Problem:
    """The question that demands are put into.

    sample: one layer's router.
    """
    model = oracle.model
    ids = sample(OBSERVED_TOKENS, np.random.default_rng(seed))
    counts = np.bincount(ids.ravel(), minlength=model.moe.num_experts)[None, :]
    source = SampledActivation("sampled routing", [sample], counts, OBSERVED_TOKENS, seed=seed)
    return Problem(
        oracle=oracle,
        activation=CachedActivation(source),
        lengths=Means(isl=1, osl=1),
        demand=Rate(1.0),
        tpot_s=tpot_s,
        max_gpus=max_gpus,
        batching=Batching(
            max_sequences=limits.max_num_seqs, max_prompt_tokens=limits.max_num_batched_tokens
        ),
    )


@dataclass(frozen=True, eq=False)
class PlannedPolicy:
    """One planner.

    headroom: rate to provide for over the rate that was seen.
    rate_quantile: of the minutes looked back at, 1 for the busiest; None means the mean rate is
        what counts.
    """

    planner: BaselinePlanner
    deployments: Deployments
    headroom: float = 1.3
    rate_quantile: float | None = None
    _known: dict[tuple[int, int, int], tuple[tuple[answers.Deployment, ...], bool]] = field(
        default_factory=dict, repr=False
    )

    def __post_init__(self) -> None:
        if not 0 < self.headroom < math.inf:
            raise ConfigError(f"a policy needs a headroom above 0, got {self.headroom}")
        if self.rate_quantile is not None and not 0 <= self.rate_quantile <= 1:
            raise ConfigError(f"a quantile of rates is from 0 to 1, got {self.rate_quantile}")

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
            + (
                ""
                if self.rate_quantile is None
                else f" or the {self.rate_quantile:g} quantile of the minutes looked back at"
            )
            + f", and those who wait within {DRAIN_S:g} s; at least what those under way need",
            f"a_max: {problem.activation.name}",
        )

    def decide(
        self, now_s: float, demand: ObservedDemand, current: SimDeployment | None
    ) -> ScalingTarget:
        """Of equally cheap shapes the present one, else the fastest.

        Where nothing meets the demand, what comes closest.
        """
        found, enough = self._answers(demand)
        chosen = found[0]
        for one in found:
            if current and one.cost == chosen.cost and _size(one) == current.size:
                chosen = one
                break
        return ScalingTarget(self._built(chosen), enough)

    def _answers(self, demand: ObservedDemand) -> tuple[tuple[answers.Deployment, ...], bool]:
        rate = self._tokens_per_s(demand)
        key = (
            _steps_up(rate, RATE_STEP),
            _steps_up(demand.prompt_tokens, LENGTH_STEP),
            _steps_up(demand.output_tokens, LENGTH_STEP),
        )
        if key not in self._known:
            question = replace(
                self.planner.problem,
                demand=Rate(RATE_STEP ** key[0]),
                lengths=Means(isl=LENGTH_STEP ** key[1], osl=LENGTH_STEP ** key[2]),
            )
            self._known[key] = self._ask(question)
        return self._known[key]

    def _tokens_per_s(self, demand: ObservedDemand) -> float:
        """Output to provide for; see the module's docstring."""
        seen = demand.requests_per_s
        if self.rate_quantile is not None and demand.minute_rates:
            seen = max(seen, float(np.quantile(demand.minute_rates, self.rate_quantile)))
        rate = (self.headroom * seen + demand.num_waiting / DRAIN_S) * demand.output_tokens
        running = demand.num_running / self.planner.problem.tpot_s
        return max(rate, running, LEAST_TOKENS_PER_S)

    def _ask(self, question: Problem) -> tuple[tuple[answers.Deployment, ...], bool]:
        found = self.planner.options(question, OPTIONS)
        if not isinstance(found, answers.Infeasible):
            return tuple(found), True
        if found.nearest is None:
            raise ConfigError(f"policy {self.name}: {found.reason}")
        return (found.nearest,), False

    def _built(self, one: answers.Deployment) -> SimDeployment:
        style = DeploymentStyle(slots=one.slots, policy=one.policy, micro_batches=one.micro_batches)
        if one.exchange_plan != "all-to-all":
            style = replace(style, exchange_plan=one.exchange_plan, gating=one.gating)
        built = self.deployments.of(_size(one), style)
        if built is None:
            raise ConfigError(
                f"policy {self.name}: the planner's {one.shape} with {one.slots} slots leaves no "
                "room for KV here; use devices with more memory"
            )
        return built


def _size(one: answers.Deployment) -> PoolSize:
    if one.kind == "monolithic":
        return PoolSize(one.num_attention // one.attention_tp, 0, one.attention_tp)
    return PoolSize(one.num_attention, one.num_expert)


def _steps_up(value: float, step: float) -> int:
    """The least whole power of `step` that is not below `value`."""
    return math.ceil(math.log(value) / math.log(step) - 1e-9)

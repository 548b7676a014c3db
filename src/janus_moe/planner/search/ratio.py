"""The closed form for the ratio of attention instances to a pool of experts, as a cross-check.

arXiv 2601.21351 (Theorem 4.4; read from notes and summaries, not from the paper's own text) has r
attention instances of B slots each for one FFN instance. With t_A = alpha_A T + beta_A of a token
load T = B * (mean prompt + mean output), t_C of B tokens, t_F = alpha_F r B + beta_F, a cycle takes
max(t_A, t_C, t_F), and throughput per instance is r B / ((r + 1) cycle). It is largest at

    r* = max(r_A, r_C, r_peak)
    r_A = (t_A - beta_F) / (alpha_F B)      r_C = (t_C - beta_F) / (alpha_F B)
    r_peak = sqrt(beta_F / (alpha_F B))

Here the FFN instance is an expert pool of g GPUs; (r + g) in place of (r + 1) leaves r_A and r_C
as they are and gives r_peak = sqrt(g beta_F / (alpha_F B)). All times are of one MoE layer. The
context is what a sequence holds on average here, prompt plus half the output; the paper's geometric
lengths have the whole mean output. It assumes perfect overlap of many micro-batches and knows
neither objective nor memory, so it says which way a shape leans, not what to buy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from janus_moe.planner.search.answers import Deployment
from janus_moe.planner.search.problem import Problem
from janus_moe.planner.search.shapes import Shapes

Regime = Literal["attention", "communication", "experts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearTimes:
    """Times of one layer as the closed form has them.

    attention_s, communication_s: t_A and t_C at the batch of one attention instance.
    alpha_f, beta_f: of t_F = alpha_F rows + beta_F, in seconds.
    batch: of one attention instance.
    group: GPUs of the expert pool, g.
    """

    attention_s: float
    communication_s: float
    alpha_f: float
    beta_f: float
    batch: float
    group: float = 1.0

    def throughput(self, r: float) -> float:
        """Tokens per second, layer and GPU with r attention instances."""
        experts = self.alpha_f * r * self.batch + self.beta_f
        cycle = max(self.attention_s, self.communication_s, experts)
        return r * self.batch / ((r + self.group) * cycle)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """Attention instances for the pool.

    r: the largest of the three.
    """

    r_attention: float
    r_communication: float
    r_peak: float

    @property
    def r(self) -> float:
        return max(self.r_attention, self.r_communication, self.r_peak)

    @property
    def regime(self) -> Regime:
        """What decides."""
        if self.r == self.r_peak:
            return "experts"
        return "attention" if self.r == self.r_attention else "communication"


def closed_form(times: LinearTimes) -> Ratio:
    """The ratio with the most throughput per GPU, as a real number."""
    slope = times.alpha_f * times.batch
    if slope <= 0:  # experts cost the same for any batch: there is no largest ratio
        return Ratio(r_attention=math.inf, r_communication=math.inf, r_peak=math.inf)
    return Ratio(
        r_attention=(times.attention_s - times.beta_f) / slope,
        r_communication=(times.communication_s - times.beta_f) / slope,
        r_peak=math.sqrt(max(times.group * times.beta_f / slope, 0.0)),
    )


def linear_times(problem: Problem, one: Deployment) -> LinearTimes:
    """At a deployment of pools: experts as a line through half and twice its batch."""
    oracle, model = problem.oracle, problem.oracle.model
    batch = one.batch / one.num_attention
    table = problem.activation.table(np.array([one.num_expert]), np.array([one.slots]), one.policy)
    tokens = np.array([one.batch / 2, one.batch * 2])
    activated = np.interp(np.log2(np.maximum(tokens, 1)), np.arange(table.shape[1]), table[0])
    pairs = tokens * model.moe.router.top_k / one.num_expert
    low, high = (
        oracle.moe_layer_s(activated, pairs, tokens, np.array(one.slots))
        + oracle.overheads.expert_layer_s
    )
    alpha = max(0.0, float(high - low) / float(tokens[1] - tokens[0]))
    load = Shapes.of(problem, replace(one, micro_batches=1)).load(one.batch)
    over = oracle.overheads
    attention = float(oracle.attention_layer_s(batch, problem.context)) + over.attention_layer_s
    attention += over.attention_token_s * batch + float(oracle.shared_expert_s(batch))
    return LinearTimes(
        attention_s=attention,
        communication_s=float(np.asarray(load.dispatch_s) + load.combine_s),
        alpha_f=alpha,
        beta_f=max(0.0, float(low) - alpha * float(tokens[0])),
        batch=batch,
        group=float(one.num_expert),
    )


def cross_check(problem: Problem, one: Deployment) -> str:
    """One line for a report: what the closed form says about a deployment of pools."""
    ratio = closed_form(linear_times(problem, one))
    if math.isinf(ratio.r):
        return (
            "closed form (arXiv 2601.21351): experts take the same time for any batch near this "
            "one, so every further attention instance pays; the search stops at the demand"
        )
    return (
        f"closed form (arXiv 2601.21351): r* = {ratio.r:.1f} attention instances for these "
        f"{one.num_expert} expert instances ({ratio.regime} decide: r_A {ratio.r_attention:.1f}, "
        f"r_C {ratio.r_communication:.1f}, r_peak {ratio.r_peak:.1f}); the search has "
        f"{one.num_attention}. It maximises tokens per GPU with perfect overlap and knows no "
        "demand, objective or memory"
    )

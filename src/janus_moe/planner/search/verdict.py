"""Whether to have pools at all: the best pools against the best monolithic deployment, and why."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from janus_moe.planner.search.answers import Deployment
from janus_moe.planner.search.explain import memory_parts, step_estimate
from janus_moe.planner.search.problem import Problem, Saturate

MARGIN = 0.05
"""Gains below this are within the error of any estimate here, and pools are more to run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether pools pay, and why.

    gain: of the pools over the monolithic deployment, in tokens per unit of cost; nan where only
        one of them is possible.
    reasons: sentences with numbers.
    """

    disaggregate: bool
    gain: float
    reasons: tuple[str, ...]

    @property
    def headline(self) -> str:
        return "disaggregate" if self.disaggregate else "do not disaggregate"


def judge(
    problem: Problem, pools: Deployment | None, monolithic: Deployment | None, why_not: str = ""
) -> Verdict | None:
    """The verdict about the best of each kind; None means that neither is possible.

    why_not: what the one that is not possible lacks.
    """
    if pools is None and monolithic is None:
        return None
    if monolithic is None:
        return Verdict(
            disaggregate=True,
            gain=float("nan"),
            reasons=(f"no monolithic deployment is possible: {why_not}",),
        )
    if pools is None:
        return Verdict(
            disaggregate=False,
            gain=float("nan"),
            reasons=(f"no pair of pools is possible: {why_not}",),
        )
    if isinstance(problem.demand, Saturate):
        gain = pools.tokens_per_s / pools.cost / (monolithic.tokens_per_s / monolithic.cost) - 1
    else:
        gain = monolithic.cost / pools.cost - 1
    better = bool(gain > MARGIN)
    return Verdict(
        disaggregate=better,
        gain=gain,
        reasons=(_headline(problem, pools, monolithic, gain), *_causes(problem, pools, monolithic)),
    )


def _headline(problem: Problem, pools: Deployment, mono: Deployment, gain: float) -> str:
    if isinstance(problem.demand, Saturate):
        both = (
            f"the pools {pools.shape} serve {pools.tokens_per_s_per_gpu:,.0f} tokens/s per GPU, "
            f"the monolithic deployment ({mono.shape}) {mono.tokens_per_s_per_gpu:,.0f}"
        )
    elif problem.objective == "price":
        both = (
            f"the pools {pools.shape} cost {pools.cost:.2f} $/h, "
            f"the monolithic deployment {mono.cost:.2f} $/h"
        )
    else:
        both = (
            f"the pools {pools.shape} take {pools.gpus} GPUs, "
            f"the monolithic deployment takes {mono.gpus}"
        )
    if 0 < gain <= MARGIN:
        both += f"; a gain of {gain:.0%} is within the error of the estimate"
    return both


def _causes(problem: Problem, pools: Deployment, mono: Deployment) -> tuple[str, ...]:
    """The three things in which they differ: waiting, reading, and memory."""
    ours, theirs = step_estimate(problem, pools), step_estimate(problem, mono)
    attention = ours.layer["attention"].seconds + ours.layer["shared expert"].seconds
    layer = sum(
        ours.whole[name].seconds
        for name in ("attention", "shared expert", "dispatch", "experts", "combine")
    ) / (problem.oracle.model.num_moe_layers)
    busy = [
        min(1.0, pools.micro_batches * part / layer)
        for part in (attention, ours.layer["experts"].seconds)
    ]
    exchange = [
        (step.layer["dispatch"].seconds + step.layer["combine"].seconds) * 1e6
        for step in (ours, theirs)
    ]
    held = [_weights_gb(problem, one) for one in (pools, mono)]
    tp = mono.attention_tp
    copies = f"{tp} devices share" if tp > 1 else "every device holds"
    slack = np.array([one.batch / max(one.most_tokens, 1) for one in (pools, mono)])
    return (
        f"in the pools, attention devices compute {busy[0]:.0%} of a layer's time and expert "
        f"devices {busy[1]:.0%}; in the monolithic deployment every device computes both",
        f"the busiest device reads {pools.activated:.1f} experts per micro-batch against "
        f"{mono.activated:.1f}; an exchange takes {exchange[0]:.0f} us per layer against "
        f"{exchange[1]:.0f} us",
        f"weights take {held[0]:,.0f} GB in the pools and {held[1]:,.0f} GB in the monolithic "
        f"deployment, where {copies} attention; the batch fills {slack[0]:.0%} and "
        f"{slack[1]:.0%} of the memory that is left",
    )


def _weights_gb(problem: Problem, one: Deployment) -> float:
    total = 0.0
    for instances, parts in memory_parts(problem, one).values():
        total += instances * (parts["weights"] + parts["experts"])
    return one.copies * total / 1e9

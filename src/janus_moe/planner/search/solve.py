"""Batches of deployments that are to be solved exactly, and the deployments with these batches.

It does not choose shapes: `search` and `monolithic` say which are solved.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from janus_moe.planner.latency.arrays import Array, Bools, Ints
from janus_moe.planner.search.answers import Deployment
from janus_moe.planner.search.fixed_point import fixed_points, largest_batches
from janus_moe.planner.search.problem import Concurrency, Rate
from janus_moe.planner.search.shapes import Shapes
from janus_moe.spec import ReplicaPolicy

Solver = Callable[[Shapes, Ints], Array]
"""(shapes, [shapes] copies) -> [options, shapes] batch of a copy, nan where there is none."""


def demanded(shapes: Shapes, copies: Ints) -> Array:
    """What the demand keeps under way; without a figure of demand, as `largest`."""
    demand, most, tpot_s = shapes.problem.demand, shapes.most_tokens, shapes.problem.tpot_s
    if isinstance(demand, Rate):
        each = demand.tokens_per_s / copies
        limit = np.minimum(most, np.maximum(1.0, each * tpot_s))
        return fixed_points(shapes.tpot_s, each, limit)
    if isinstance(demand, Concurrency):
        wanted = np.maximum(1.0, demand.requests / copies)
        return np.where(most >= wanted, wanted, np.nan)
    return largest(shapes, copies)


def largest(shapes: Shapes, _: Ints) -> Array:
    """The most that the objectives and memory allow."""
    problem = shapes.problem
    return largest_batches(
        lambda batch: shapes.times(batch).scaled_latency(problem),
        problem.tpot_s,
        shapes.most_tokens,
    )


def one_token(shapes: Shapes, _: Ints) -> Array:
    """A single request, whatever is asked for."""
    return np.where(shapes.most_tokens >= 1, 1.0, np.nan)


def solved(
    shapes: Shapes,
    copies: Ints,
    policy: ReplicaPolicy,
    solver: Solver,
    allowed: Callable[[Array], Bools] | None = None,
) -> list[Deployment]:
    """The deployments that have a batch, within the objectives where `demanded` solves them.

    shapes: [options, shapes]
    copies: [shapes] of each.
    allowed: from the batches, which are wanted; None means all.
    """
    batch = solver(shapes, copies)
    usable = np.where(np.isnan(batch), 1.0, batch)
    times, good = shapes.times(usable), ~np.isnan(batch)
    if solver is demanded:
        good &= times.scaled_latency(shapes.problem) <= shapes.problem.tpot_s
    if allowed is not None:
        good &= allowed(usable)
    activated, cost = shapes.activated(usable), _cost(shapes, copies)
    tp = np.broadcast_to(shapes.attention_tp, copies.shape)
    return [
        Deployment(
            kind=shapes.kind,
            num_attention=int(shapes.num_attention[index]),
            num_expert=int(shapes.num_expert[index]),
            slots=int(shapes.slots[option, index]),
            exchange_plan=shapes.exchange_plans[option] if shapes.exchange_plans else "all-to-all",
            gating=shapes.gating,
            policy=policy,
            micro_batches=int(shapes.micro_batches[option, 0]),
            copies=int(copies[index]),
            batch=float(usable[option, index]),
            activated=float(activated[option, index]),
            tpot_s=float(times.tpot[option, index]),
            most_tokens=float(shapes.most_tokens[option, index]),
            cost=float(cost[index]),
            attention_tp=int(tp[index]),
            ttft_s=float(times.ttft[option, index]),
        )
        for option, index in np.argwhere(good)
    ]


def _cost(shapes: Shapes, copies: Ints) -> Array:
    attention, expert = (shapes.problem.weight_of(pool) for pool in ("attention", "expert"))
    if shapes.kind == "monolithic":
        return np.asarray(copies * shapes.num_attention * attention)
    return np.asarray(copies * (shapes.num_attention * attention + shapes.num_expert * expert))

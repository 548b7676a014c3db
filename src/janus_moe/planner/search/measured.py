"""Plans for one machine that was measured: every shape of pools on it, one after another.

A profile has tables for each number of instances that share the machine, so every shape has an
oracle of its own. This module does not know how a profile is made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from janus_moe.planner.latency import Oracle, Profile
from janus_moe.planner.search.answers import Deployment, Infeasible
from janus_moe.planner.search.problem import PoolStyle, Problem, Saturate
from janus_moe.planner.search.recommend import Recommendation, check_routing
from janus_moe.planner.search.search import PoolSearch
from janus_moe.planner.search.verdict import judge

ALL_SHAPES = 1024


def machine_oracle(profile: Profile, num_attention: int, num_expert: int) -> Oracle:
    """Returns the latency of so many instances, over the transport that serve takes for them."""
    alone = num_attention == num_expert == 1 and "loopback" in profile.exchanges
    return Oracle.from_profile(profile, num_attention, num_expert, "loopback" if alone else "shm")


def recommend_measured(
    profile: Profile,
    question: Callable[[Oracle], Problem],
    style: PoolStyle,
    top_n: int = 5,
) -> Recommendation:
    """Returns the best shapes among those that were measured, in one copy.

    question: what is asked, for an oracle
    top_n: shapes to return at most
    """
    # Inside one machine all exchange plans are the same; micro-batches were not measured.
    style = replace(style, exchange_plans=("1pc",), micro_batches=(1,))
    searches = {
        (num_attention, num_expert): _search(profile, question, style, num_attention, num_expert)
        for num_attention in range(1, max(profile.attention) + 1)
        for num_expert in range(1, max(profile.expert) + 1)
    }
    whole = searches[max(profile.attention), max(profile.expert)]
    check_routing(whole.problem)
    found = [
        one
        for shape, search in searches.items()
        for one in _answers(search)
        if (one.num_attention, one.num_expert) == shape  # others have other tables
    ]
    saturate = isinstance(whole.problem.demand, Saturate)
    found.sort(key=lambda one: ((-one.tokens_per_s if saturate else 0.0), one.rank))
    best = found[0] if found else None
    return Recommendation(
        problem=whole.problem,
        pools=tuple(found[:top_n]),
        monolithic=None,
        verdict=judge(whole.problem, best, None, "a profile has figures of pools alone"),
        infeasible=None if found else _why_not(whole),
    )


def _search(
    profile: Profile,
    question: Callable[[Oracle], Problem],
    style: PoolStyle,
    num_attention: int,
    num_expert: int,
) -> PoolSearch:
    problem = question(machine_oracle(profile, num_attention, num_expert))
    most = min(problem.max_gpus, num_attention + num_expert)
    return PoolSearch(replace(problem, max_gpus=most, max_copies=1), style)


def _answers(search: PoolSearch) -> list[Deployment]:
    problem = search.problem
    if isinstance(problem.demand, Saturate):
        return search.largest(problem.max_gpus, ALL_SHAPES)
    return search.cheapest(ALL_SHAPES)


def _why_not(search: PoolSearch) -> Infeasible:
    most = max(search.largest(search.problem.max_gpus), key=lambda d: d.tokens_per_s, default=None)
    reach = "no shape meets the objective" if most is None else "no shape meets the demand"
    return Infeasible(
        reason=f"{reach} with what was measured on this machine; ask for less, or measure more "
        "instances (`janus profile --max-instances`)",
        nearest=most,
    )

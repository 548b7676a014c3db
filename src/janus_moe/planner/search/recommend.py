"""A question in, the whole answer out: pools, the monolithic candidate, the verdict; or why not."""

from __future__ import annotations

from dataclasses import dataclass, replace

from janus_moe.errors import ConfigError
from janus_moe.planner.search.answers import Deployment, Infeasible
from janus_moe.planner.search.memory import attention_need, most_slots
from janus_moe.planner.search.monolithic import MonolithicSearch
from janus_moe.planner.search.prefill import most_sequences
from janus_moe.planner.search.problem import (
    Concurrency,
    MonolithicStyle,
    PoolStyle,
    Problem,
    Rate,
    Saturate,
    ServiceDemand,
)
from janus_moe.planner.search.search import PoolSearch
from janus_moe.planner.search.verdict import Verdict, judge


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """The whole answer to a question.

    pools: the best shapes, best first.
    infeasible: set exactly where nothing is possible.
    """

    problem: Problem
    pools: tuple[Deployment, ...]
    monolithic: Deployment | None
    verdict: Verdict | None
    infeasible: Infeasible | None

    @property
    def best(self) -> Deployment | None:
        """What the verdict recommends."""
        if self.verdict is None:
            return None
        return self.pools[0] if self.verdict.disaggregate else self.monolithic


def recommend(
    problem: Problem,
    style: PoolStyle | None = None,
    monolithic: MonolithicStyle | None = None,
    top_n: int = 5,
) -> Recommendation:
    """The joint search and its verdict.

    The monolithic candidate is on the attention device; with different devices its oracle is that
    of the attention device alone.

    top_n: shapes of pools to return at most.
    """
    if top_n < 1:
        raise ConfigError(f"at least 1 plan must be asked for, got {top_n}")
    check_routing(problem)
    search = PoolSearch(problem, style or PoolStyle())
    monolithic_search = MonolithicSearch(on_one_device(problem), monolithic or MonolithicStyle())
    if isinstance(problem.demand, Saturate):
        pools = tuple(search.largest(problem.max_gpus, top_n))
        whole = monolithic_search.largest()
    else:
        pools = tuple(search.cheapest(top_n))
        whole = monolithic_search.cheapest()
    best = pools[0] if pools else None
    infeasible = None
    why_not = ""
    if best is None:
        infeasible = why_no_pools(search)
        why_not = infeasible.reason
    elif whole is None:
        why_not = why_not_monolithic(monolithic_search)
    return Recommendation(
        problem=problem,
        pools=pools,
        monolithic=whole,
        verdict=judge(problem, best, whole, why_not),
        infeasible=infeasible if whole is None else None,
    )


def on_one_device(problem: Problem) -> Problem:
    """The same question with experts on the attention device as well."""
    oracle = problem.oracle.on_one_device()
    return problem if oracle is problem.oracle else replace(problem, oracle=oracle)


def check_routing(problem: Problem) -> None:
    """Raises ConfigError where the routing is that of another model."""
    model, activation = problem.oracle.model, problem.activation
    if activation.num_experts != model.moe.num_experts:
        raise ConfigError(
            f"the routing is of {activation.num_experts} experts per layer, but {model.name} has "
            f"{model.moe.num_experts}; record a trace of this model"
        )


def why_no_pools(search: PoolSearch) -> Infeasible:
    """What is missing, and the nearest pools that there are."""
    problem = search.problem
    oracle, model = problem.oracle, problem.oracle.model
    attention, expert = oracle.attention_side.device, oracle.expert_side.device
    need = attention_need(oracle, 1, problem.context)
    room = problem.memory.usable_bytes(oracle.attention_side)
    if float(need.most_tokens(room)) < 1:
        return Infeasible(
            reason=f"an attention instance needs {(float(need.fixed + need.per_token)) / 1e9:.1f} "
            f"GB for its weights and one sequence, but {problem.memory.usable:.0%} of "
            f"{attention.title} are {room / 1e9:.1f} GB; use fewer bits per weight, a shorter "
            "context or another system"
        )
    slots = most_slots(oracle, problem.memory)
    wanted = slots if search.style.slots is None else search.style.slots
    each = model.slot_bytes / 1e9
    if slots < 1 or wanted > slots:
        return Infeasible(
            reason=f"{max(wanted, 1)} slots of {each:.2f} GB on an expert instance do not fit into "
            f"{problem.memory.usable:.0%} of {expert.title} ({expert.memory_bytes / 1e9:.1f} GB); "
            f"{slots} do"
        )
    least = -(-model.moe.num_experts // min(wanted, model.moe.num_experts))
    if least + 1 > problem.max_gpus:
        return Infeasible(
            reason=f"{model.moe.num_experts} experts per layer need {least} expert instances of "
            f"{min(wanted, model.moe.num_experts)} slots ({each:.2f} GB each) beside 1 attention "
            f"instance, so {least + 1} GPUs, but there are {problem.max_gpus}"
        )
    prompts = float(most_sequences(problem, problem.max_gpus - least))
    if prompts < 1:
        return Infeasible(
            reason=f"prompts of {problem.lengths.isl:g} tokens for {problem.lengths.osl:g} of "
            f"output fill the steps of all {problem.max_gpus - least} attention instances with "
            f"{problem.batching.max_prompt_tokens} tokens each; exclude prefill, or have more GPUs"
        )
    if problem.ttft_s is not None:
        without = PoolSearch(replace(problem, ttft_s=None), search.style)
        asked = isinstance(problem.demand, Saturate)
        best = without.largest(problem.max_gpus) if asked else without.cheapest()
        if best:
            return Infeasible(
                reason=f"a first token within {1e3 * problem.ttft_s:,.0f} ms on average is not "
                f"possible on {problem.max_gpus} GPUs: {best[0].shape}, which meets the demand "
                f"otherwise, takes about {1e3 * best[0].ttft_s:,.0f} ms with prompts of "
                f"{problem.lengths.isl:g} tokens; allow more per step (--max-num-batched-tokens), "
                "or raise --ttft",
                nearest=best[0],
            )
    largest = search.largest(problem.max_gpus)
    if not largest:
        fastest = search.fastest()
        if fastest is None or fastest.tpot_s <= problem.tpot_s:
            return Infeasible(reason="no shape of this style meets the objective", nearest=fastest)
        return Infeasible(
            reason=f"a TPOT of {1e3 * problem.tpot_s:.1f} ms cannot be met: the fastest of all "
            f"shapes takes {1e3 * fastest.tpot_s:.1f} ms ({fastest.shape}) with a single request",
            nearest=fastest,
        )
    return Infeasible(
        reason=f"{problem.max_gpus} GPUs reach at most {reached(largest[0], problem.demand)} "
        f"within {1e3 * problem.tpot_s:.1f} ms per token, less than the "
        f"{wanted_text(problem.demand)} asked for",
        nearest=largest[0],
    )


def why_not_monolithic(search: MonolithicSearch) -> str:
    """One sentence about the monolithic candidate."""
    problem = search.problem
    sizes = ", ".join(map(str, search.sizes.tolist())) or "no"
    if not search.fits():
        return f"the model does not fit on {sizes} GPUs with a copy of attention on each"
    fastest = search.fastest()
    if fastest is not None and fastest.tpot_s > problem.tpot_s:
        return (
            f"its lowest TPOT is {1e3 * fastest.tpot_s:.1f} ms on {fastest.shape}, above "
            f"{1e3 * problem.tpot_s:.1f} ms"
        )
    return f"{problem.max_gpus} GPUs in copies of {sizes} do not meet the demand"


def reached(one: Deployment, demand: ServiceDemand) -> str:
    if isinstance(demand, Concurrency):
        return f"{one.copies * one.batch:,.0f} requests at once"
    return f"{one.tokens_per_s:,.0f} output tokens/s"


def wanted_text(demand: ServiceDemand) -> str:
    if isinstance(demand, Concurrency):
        return f"{demand.requests:,.0f} requests at once"
    if isinstance(demand, Rate):
        return f"{demand.tokens_per_s:,.0f} output tokens/s"
    return "most that is possible"

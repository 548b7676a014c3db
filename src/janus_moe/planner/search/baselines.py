"""Other systems as planners: what shapes they may choose and how their pools work.

These are models of published designs in the words of section 7 of arXiv 2512.13525, not the
systems themselves. Everything that is assumed is a field of `BaselineConfig` and is printed with
every figure.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Literal, get_args

from janus_moe.errors import ConfigError
from janus_moe.planner.search.activation import CachedActivation
from janus_moe.planner.search.answers import Answer, Deployment, Infeasible
from janus_moe.planner.search.monolithic import MonolithicSearch
from janus_moe.planner.search.problem import MonolithicStyle, PoolStyle, Problem, Rate, Saturate
from janus_moe.planner.search.recommend import (
    check_routing,
    on_one_device,
    why_no_pools,
    why_not_monolithic,
)
from janus_moe.planner.search.search import PoolSearch

BaselineName = Literal[
    "janus", "sglang", "sglang-dp", "megascale-infer", "xdeepserve", "monolithic"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineConfig:
    """One planner.

    max_copies: of a deployment side by side.
    source: where the choices are from.
    """

    name: BaselineName
    style: PoolStyle | MonolithicStyle
    max_copies: int
    source: str

    def lines(self) -> tuple[str, ...]:
        """Every setting, for reports."""
        kind = "monolithic" if isinstance(self.style, MonolithicStyle) else "two pools"
        shown = [f"{field.name}: {getattr(self.style, field.name)}" for field in fields(self.style)]
        return (
            f"{self.name}: {kind}",
            *shown,
            f"max_copies: {self.max_copies}",
            f"source: {self.source}",
        )


CONFIGS: dict[BaselineName, BaselineConfig] = {
    config.name: config
    for config in (
        BaselineConfig(
            name="janus",
            style=PoolStyle(),
            max_copies=1,
            source="this package: exact scheduling, gating on the expert side, any shape",
        ),
        BaselineConfig(
            name="sglang",
            style=MonolithicStyle(sizes=(8, 16, 32, 64), micro_batches=(1,)),
            max_copies=1,
            source="section 7: monolithic, 8/16/32/64-GPU steps; expert parallelism without "
            "replicas; attention data parallel or its heads shared, whichever is better (ours)",
        ),
        BaselineConfig(
            name="sglang-dp",
            style=MonolithicStyle(sizes=(8, 16, 32, 64), micro_batches=(1,), attention_tp=(1,)),
            max_copies=1,
            source="as sglang, with data-parallel attention only: every GPU has all of it",
        ),
        BaselineConfig(
            name="megascale-infer",
            style=PoolStyle(
                policy="random",
                gating="agate",
                exchange_plans=("1pc",),
                micro_batches=(1, 2, 3),
                balance=0.25,
            ),
            max_copies=1,
            source="section 7: random replica, gating at the attention side, only shapes that "
            "balance the pools' times; arXiv 2504.02263: direct sends, 3 micro-batches. Within "
            "25 %, or as close as a whole number of instances comes, counts as balanced (ours)",
        ),
        BaselineConfig(
            name="xdeepserve",
            style=PoolStyle(
                policy="token-split",
                gating="agate",
                exchange_plans=("1pc",),
                micro_batches=(1, 2),
                gpu_step=4,
            ),
            max_copies=1,
            source="section 7: replicas as EPLB has them, all-to-all, gating at the attention "
            "side, 4-GPU steps",
        ),
        BaselineConfig(
            name="monolithic",
            style=MonolithicStyle(),
            max_copies=1,
            source="this package: what the verdict compares pools with, in one copy",
        ),
    )
}


@dataclass(frozen=True, eq=False)
class BaselinePlanner:
    """The cheapest deployment of one style.

    problem: its demand is replaced by what is asked.
    """

    problem: Problem
    config: BaselineConfig

    @classmethod
    def of(cls, name: str, problem: Problem, **changes: object) -> BaselinePlanner:
        """By name, with fields of its style changed, for instance slots=27."""
        if name not in get_args(BaselineName):
            raise ConfigError(
                f"there is no planner {name!r}; planners are {', '.join(get_args(BaselineName))}"
            )
        config = CONFIGS[name]  # type: ignore[index]
        known = {field.name for field in fields(config.style)}
        style = replace(config.style, **{k: v for k, v in changes.items() if k in known})  # type: ignore[arg-type]
        return cls(problem, replace(config, style=style))

    @property
    def name(self) -> str:
        return self.config.name

    def decide(self, tokens_per_s: float) -> Answer:
        """The fewest GPUs for a demand, or why there is no such deployment."""
        return self.solve(replace(self._remembering, demand=Rate(tokens_per_s)))

    def solve(self, question: Problem) -> Answer:
        """The same for any demand, also `Concurrency`."""
        found = self.options(question)
        return found if isinstance(found, Infeasible) else found[0]

    def options(self, question: Problem, count: int = 1) -> list[Deployment] | Infeasible:
        """The best shapes, best first: up to `count` of pools, or one monolithic."""
        question = replace(question, max_copies=self.config.max_copies)
        if isinstance(self.config.style, MonolithicStyle):
            return _monolithic_options(question, self.config.style)
        search = PoolSearch(question, self.config.style)
        return search.cheapest(count) or why_no_pools(search)

    @cached_property
    def _remembering(self) -> Problem:
        check_routing(self.problem)
        return replace(self.problem, activation=CachedActivation(self.problem.activation))


def _monolithic_options(question: Problem, style: MonolithicStyle) -> list[Deployment] | Infeasible:
    search = MonolithicSearch(on_one_device(question), style)
    found = search.cheapest()
    if found is not None:
        return [found]
    nearest = MonolithicSearch(replace(search.problem, demand=Saturate()), style).largest()
    return Infeasible(reason=why_not_monolithic(search), nearest=nearest or search.fastest())

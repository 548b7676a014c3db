"""Times of single exchanges, by plan and batch size, and the cost model that they give.

How they are measured is not known here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

from janus_moe.planner.latency.link_fit import (
    LinkFit,
    MeasuredExchange,
    exchange_seconds,
    fit_links,
)
from janus_moe.planner.latency.link_profile import LinkProfile, MeasuredPlan
from janus_moe.planner.latency.links import tcp_links
from janus_moe.spec import EXCHANGE_PLANS, ExchangePlanName, Spec
from janus_moe.tracing.durations import lower_quartile
from janus_moe.transport import ExchangeLayout
from janus_moe.transport.exchange_plans import egate_plan
from janus_moe.transport.exchange_plans.pricing import priced_counts
from janus_moe.transport.network.plan_selection import predicted_times


class Timed(Spec, frozen=True):
    """Of one plan (or auto) and batch size. seconds: of single exchanges, there and back.

    chosen: the plan of most steps.
    """

    variant: str
    tokens: int
    seconds: tuple[float, ...]
    chosen: str

    @property
    def typical_s(self) -> float:
        """Lower quartile: what disturbs a machine only ever adds time."""
        return lower_quartile(self.seconds)


class ExchangeTimes(Spec, frozen=True):
    """What attention instance 0 saw. links: fitted to the first part. notices: of the choice.

    learned: tokens -> steps that the choice got before it was measured.
    """

    profiled: tuple[Timed, ...]
    compared: tuple[Timed, ...]
    links: dict[str, float]
    notices: tuple[str, ...]
    learned: dict[int, int] = msgspec.field(default_factory=dict)


class TimesSoFar:
    """Seconds of single exchanges by batch size and variant, and how often each plan was used."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[str, int], list[float]] = {}
        self._chosen: dict[tuple[str, int], Counter[str]] = {}

    def add(self, variant: str, tokens: int, seconds: Sequence[float], chosen: str) -> None:
        self._seconds.setdefault((variant, tokens), []).extend(seconds)
        self._chosen.setdefault((variant, tokens), Counter())[chosen] += 1

    def all(self) -> tuple[Timed, ...]:
        """In the order in which they came first; nothing where the instance had no rows."""
        return tuple(
            Timed(
                variant=variant,
                tokens=tokens,
                seconds=tuple(times),
                chosen=self._chosen[variant, tokens].most_common(1)[0][0],
            )
            for (variant, tokens), times in self._seconds.items()
            if times
        )


def spread(tokens: int, instances: int) -> tuple[int, ...]:
    """As even as possible, the first ones get more."""
    share, rest = divmod(tokens, instances)
    return tuple(share + (index < rest) for index in range(instances))


def distinct_plans(layout: ExchangeLayout) -> list[ExchangePlanName]:
    """Without those that do the same as an earlier one in this layout."""
    times = predicted_times(layout.topology, 64, layout.row_bytes, tcp_links())
    return [plan for plan, seconds in zip(EXCHANGE_PLANS, times, strict=True) if seconds < 1e9]


def fit_timed(layout: ExchangeLayout, timed: Sequence[Timed]) -> LinkFit:
    """The cost model of these times; batch sizes are left out by turns for its errors."""
    return fit_links([as_measured(layout, one) for one in timed])


def link_profile(
    layout: ExchangeLayout, times: ExchangeTimes, machine: dict[str, str]
) -> LinkProfile:
    """The result as the file that `--exchange-profile` takes."""
    fit = fit_timed(layout, times.profiled)
    measured = tuple(
        MeasuredPlan(
            plan=one.variant,
            tokens=one.tokens,
            seconds=one.typical_s,
            predicted_s=exchange_seconds(fit.model, as_measured(layout, one).counts),
        )
        for one in times.profiled
    )
    return LinkProfile(
        machine=machine,
        attention_nodes=layout.membership.attention_hosts,
        expert_nodes=layout.membership.expert_hosts,
        hidden_size=layout.hidden_size,
        links=times.links,
        median_error=fit.median_error,
        p90_error=fit.p90_error,
        measured=measured,
    )


def as_measured(layout: ExchangeLayout, timed: Timed) -> MeasuredExchange:
    """With the counts of its plan, which the cost model prices."""
    tokens = spread(timed.tokens, layout.shape.attention)
    plan: ExchangePlanName = next(name for name in EXCHANGE_PLANS if name == timed.variant)
    counts = priced_counts(egate_plan(plan, layout.topology, tokens), layout.row_bytes)
    return MeasuredExchange(counts=counts, seconds=timed.typical_s, group=str(timed.tokens))

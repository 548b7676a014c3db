"""Times the exchange alone, among processes of one or several hosts: every plan, no compute.

Each process is one instance; experts answer at once. Attention instance 0 announces the plan of
each step, so all plans take turns within one run and see the same disturbances. `ExchangeOrder`
is what a process is told; nothing here starts processes or knows where they run.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from janus_moe.errors import ConfigError, ExchangeClosed
from janus_moe.perf.link_fit import (
    TERMS,
    LinkFit,
    MeasuredExchange,
    exchange_seconds,
    fit_links,
)
from janus_moe.perf.link_profile import LinkProfile, MeasuredPlan
from janus_moe.perf.links import tcp_links
from janus_moe.spec import InstanceId, Spec
from janus_moe.transport import AttentionPort, DistExchange, DistLayout, ReplyNote, WaitRule
from janus_moe.transport.choosing import (
    FixedPlan,
    PlanChooser,
    PlanSource,
    lower_quartile,
    predicted_times,
)
from janus_moe.transport.plans import PLAN_NAMES, PlanName, egate_plan
from janus_moe.transport.plans.pricing import priced_counts
from janus_moe.transport.rendezvous import FolderRendezvous, Rendezvous

Variant = PlanName | Literal["auto"]
LAYERS = 5
LEAST_ROUNDS, MOST_ROUNDS = 5, 60
AUTO_STEPS = 30
"""Steps that the adaptive choice gets before it is measured; its trials are among them."""
SYNC_S = 300.0
NOTE = ReplyNote(routing_digest=1, activated=1)


class ExchangeOrder(Spec, frozen=True):
    """What one process is told.

    meeting: a folder that all processes share. batches: tokens of all attention instances
    together. compared: batches for the second part, where the adaptive choice runs beside all
    plans with a cost model from the first part. budget_s: of each batch size, roughly.
    """

    layout: DistLayout
    instance: InstanceId
    meeting: str
    bind: str
    batches: tuple[int, ...]
    compared: tuple[int, ...] = ()
    budget_s: float = 2.0
    timeout_s: float = 60.0

    def __post_init__(self) -> None:
        largest = max((*self.batches, *self.compared), default=0)
        each = -(-largest // self.layout.shape.attention)
        if len(self.batches) < 2 or min((*self.batches, *self.compared)) < 1:
            raise ConfigError(f"batches {self.batches}: at least two of at least 1 token")
        if each > self.layout.max_tokens:
            raise ConfigError(f"{largest} tokens are {each} each, room is {self.layout.max_tokens}")


class Timed(Spec, frozen=True):
    """Of one plan (or auto) and batch size. seconds: of single exchanges, there and back.

    chosen: the plan of the last step.
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
    """What attention instance 0 saw. links: fitted to the first part. notices: of the choice."""

    profiled: tuple[Timed, ...]
    compared: tuple[Timed, ...]
    links: dict[str, float]
    notices: tuple[str, ...]


def take_part(order: ExchangeOrder) -> ExchangeTimes | None:
    """Runs one instance to the end of the measurement; attention instance 0 has the result."""
    torch.set_num_threads(1)
    meeting = FolderRendezvous(Path(order.meeting))
    rule = WaitRule(timeout_s=order.timeout_s)
    end = DistExchange(order.layout, order.instance, meeting, order.bind)
    try:
        if order.instance.pool == "expert":
            _answer(end, rule)
            return None
        driver = _Driver(end, order, rule, meeting)
        result = driver.run()
        if order.instance.index == 0:
            for index in range(1, order.layout.shape.attention):
                meeting.get(f"done {index}", SYNC_S)
            meeting.put("end", b"")
            return result
        meeting.put(f"done {order.instance.index}", b"")
        meeting.get("end", SYNC_S)
        return None
    finally:
        end.close()


def spread(tokens: int, instances: int) -> tuple[int, ...]:
    """As even as possible, the first ones get more."""
    share, rest = divmod(tokens, instances)
    return tuple(share + (index < rest) for index in range(instances))


def distinct_plans(layout: DistLayout) -> list[PlanName]:
    """Without those that do the same as an earlier one in this layout."""
    times = predicted_times(layout.topology, 64, layout.row_bytes, tcp_links())
    return [plan for plan, seconds in zip(PLAN_NAMES, times, strict=True) if seconds < 1e9]


def fit_timed(layout: DistLayout, timed: Sequence[Timed]) -> LinkFit:
    """The cost model of these times; batch sizes are left out by turns for its errors."""
    return fit_links([_as_measured(layout, one) for one in timed])


def link_profile(layout: DistLayout, times: ExchangeTimes, machine: dict[str, str]) -> LinkProfile:
    """The result as the file that `--exchange-profile` takes."""
    fit = fit_timed(layout, times.profiled)
    measured = tuple(
        MeasuredPlan(
            plan=one.variant,
            tokens=one.tokens,
            seconds=one.typical_s,
            predicted_s=exchange_seconds(fit.model, _as_measured(layout, one).counts),
        )
        for one in times.profiled
    )
    return LinkProfile(
        machine=machine,
        attention_nodes=layout.attention_nodes,
        expert_nodes=layout.expert_nodes,
        hidden_size=layout.hidden_size,
        links=times.links,
        median_error=fit.median_error,
        p90_error=fit.p90_error,
        measured=measured,
    )


def _as_measured(layout: DistLayout, timed: Timed) -> MeasuredExchange:
    tokens = spread(timed.tokens, layout.shape.attention)
    plan: PlanName = next(name for name in PLAN_NAMES if name == timed.variant)
    counts = priced_counts(egate_plan(plan, layout.topology, tokens), layout.row_bytes)
    return MeasuredExchange(counts=counts, seconds=timed.typical_s, group=str(timed.tokens))


def _answer(end: DistExchange, rule: WaitRule) -> None:
    layout = end.layout
    sums = torch.zeros(layout.shape.attention * layout.max_tokens, layout.hidden_size)
    port = end.expert_port(end.instance.index, rule)
    with contextlib.suppress(ExchangeClosed):
        while True:
            work = port.accept()
            if work is not None:
                port.reply(work, sums[: len(work.hidden)], NOTE)


@dataclass(slots=True)
class _Switch:
    """A `PlanSource` that is another one in each step: a plan, or the adaptive choice."""

    source: PlanSource
    notices: list[str]
    used: PlanSource | None = None

    @property
    def word(self) -> int:
        self.used = self.source
        return self.source.word

    def observe(self, tokens: int, seconds: float) -> str:
        """Times of a step come after it, when `source` may be another one."""
        assert self.used is not None
        notice = self.used.observe(tokens, seconds)
        if notice:
            self.notices.append(notice)
        return ""


class _Driver:
    """An attention instance: all of them take the same steps, the first one knows why."""

    def __init__(
        self, end: DistExchange, order: ExchangeOrder, rule: WaitRule, meeting: Rendezvous
    ) -> None:
        self._order = order
        self._layout = order.layout
        self._index = order.instance.index
        self._meeting = meeting
        self._plans = distinct_plans(order.layout)
        self._switch = _Switch(FixedPlan("1pc"), [])
        end.source = self._switch
        self.port: AttentionPort = end.attention_port(self._index, rule)
        dtype = getattr(torch, order.layout.dtype)
        self._hidden = torch.zeros(order.layout.max_tokens, order.layout.hidden_size, dtype=dtype)
        self._chosen = ""

    def run(self) -> ExchangeTimes:
        profiled = [
            timed
            for tokens in self._order.batches
            for timed in self._measure("profile", tokens, self._plans)
        ]
        links: dict[str, float] = {}
        chooser: PlanSource = FixedPlan("1pc")
        if self._index == 0:
            model = fit_timed(self._layout, profiled).model
            links = {name: getattr(model, name) for name in TERMS.values()}
            if self._order.compared:
                layout = self._layout
                chooser = PlanChooser(layout.topology, layout.row_bytes, model)
        compared: list[Timed] = []
        for tokens in self._order.compared:
            for _ in range(AUTO_STEPS):
                self._step(chooser, tokens)
            compared += self._measure("compare", tokens, [*self._plans, "auto"], chooser)
        notices = tuple(self._switch.notices)
        return ExchangeTimes(
            profiled=tuple(profiled), compared=tuple(compared), links=links, notices=notices
        )

    def _measure(
        self,
        phase: str,
        tokens: int,
        variants: Sequence[Variant],
        chooser: PlanSource | None = None,
    ) -> list[Timed]:
        """All variants by turns, as many rounds as the budget allows, after two that warm up."""
        started = 0.0
        for _ in range(2):  # the first time, programs and buffers are made
            started = time.perf_counter()
            for _, source in self._sources(variants, chooser):
                self._step(source, tokens)
        rounds = self._agree(f"{phase}/{tokens}", time.perf_counter() - started)
        seconds: dict[str, list[float]] = {variant: [] for variant in variants}
        chosen: dict[str, str] = {}
        for number in range(rounds):
            turn = list(self._sources(variants, chooser))
            for variant, source in turn if number % 2 else reversed(turn):
                seconds[variant] += self._step(source, tokens)
                chosen[variant] = self._chosen
        return [
            Timed(variant=variant, tokens=tokens, seconds=tuple(times), chosen=chosen[variant])
            for variant, times in seconds.items()
            if times
        ]

    def _sources(
        self, variants: Sequence[Variant], chooser: PlanSource | None
    ) -> Iterator[tuple[Variant, PlanSource]]:
        for variant in variants:
            if variant != "auto":
                yield variant, FixedPlan(variant)
            elif chooser is not None:
                yield variant, chooser

    def _agree(self, key: str, seconds: float) -> int:
        """Rounds that fit the budget, as attention instance 0 says."""
        if self._index == 0:
            rounds = int(self._order.budget_s / max(seconds, 1e-3))
            rounds = min(max(rounds, LEAST_ROUNDS), MOST_ROUNDS)
            self._meeting.put(key, str(rounds).encode())
            return rounds
        return int(self._meeting.get(key, SYNC_S))

    def _step(self, source: PlanSource, tokens: int) -> list[float]:
        """Seconds of its exchanges but the first, which also waits for the peers."""
        mine = spread(tokens, self._layout.shape.attention)[self._index]
        self._switch.source = source
        self.port.begin_step(mine)
        seconds = []
        for layer in range(LAYERS if mine else 0):
            started = time.perf_counter()
            combined = self.port.combine(self.port.dispatch(layer, self._hidden[:mine]))
            seconds.append(time.perf_counter() - started)
            self._chosen = combined.plan
        return seconds[1:]

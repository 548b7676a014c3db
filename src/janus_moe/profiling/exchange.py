"""Times the exchange alone, among processes of one or several hosts: every plan, no compute.

Each process is one instance; experts answer at once. The attention instance of rank 0 announces
the plan of each step, so all plans take turns within one run and see the same disturbances.
`ExchangeOrder` is what a process is told; nothing here starts processes or knows where they run.
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
from janus_moe.planner.latency.link_fit import COEFFICIENTS
from janus_moe.profiling.exchange_times import (
    ExchangeTimes,
    TimesSoFar,
    distinct_plans,
    fit_timed,
    spread,
)
from janus_moe.spec import EXCHANGE_PLANS, InstanceId, Spec
from janus_moe.torch_dtypes import TORCH_DTYPES
from janus_moe.transport import AttentionPort, ExchangeLayout, ReplyMetadata, WaitRule
from janus_moe.transport.network.exchange import NetworkExchange, open_network
from janus_moe.transport.network.plan_selection import FixedPlan, PlanChooser, PlanSource
from janus_moe.transport.network.rendezvous import FolderRendezvous, Rendezvous

AGAIN = " again"
"""Ends the name of a plan that takes a second turn in each round: how well times repeat."""
LAYERS = 5
LEAST_ROUNDS, MOST_ROUNDS = 2, 60
LEARN_STEPS, MOST_LEARN_STEPS = 10, 160
"""The adaptive choice gets steps before it is measured, ten by ten, until its race is over."""
SYNC_S = 300.0
NOTE = ReplyMetadata(routing_digest=1, activated=1)


class ExchangeOrder(Spec, frozen=True):
    """What one process is told.

    meeting: a folder that all processes share. batches: tokens of all attention instances
    together. compared: batches for the second part, where the adaptive choice runs beside all
    plans with a cost model from the first part. repeat: how often each plan takes its turn there.
    passes: visits to all batch sizes, so that a disturbed moment does not hit one of them alone.
    budget_s: of each batch size, roughly.
    """

    layout: ExchangeLayout
    instance: InstanceId
    meeting: str
    bind: str
    batches: tuple[int, ...]
    compared: tuple[int, ...] = ()
    repeat: Literal["once", "twice"] = "once"
    passes: int = 3
    budget_s: float = 2.0
    timeout_s: float = 60.0

    def __post_init__(self) -> None:
        largest = max((*self.batches, *self.compared), default=0)
        each = -(-largest // self.layout.shape.attention)
        if len(self.batches) < 2 or min((*self.batches, *self.compared)) < 1:
            raise ConfigError(f"batches {self.batches}: at least two of at least 1 token")
        if each > self.layout.max_tokens:
            raise ConfigError(f"{largest} tokens are {each} each, room is {self.layout.max_tokens}")


def take_part(order: ExchangeOrder) -> ExchangeTimes | None:
    """Runs one instance to the end; the attention instance of rank 0 returns the times."""
    torch.set_num_threads(1)
    meeting = FolderRendezvous(Path(order.meeting))
    rule = WaitRule(timeout_s=order.timeout_s)
    end = open_network(order.layout, order.instance, meeting, order.bind)
    try:
        if order.instance.pool == "expert":
            _answer(end, rule)
            return None
        driver = _Driver(end, order, rule, meeting)
        result = driver.run()
        if driver.rank == 0:
            for rank in range(1, order.layout.shape.attention):
                meeting.get(f"done {rank}", SYNC_S)
            meeting.put("end", b"")
            return result
        meeting.put(f"done {driver.rank}", b"")
        meeting.get("end", SYNC_S)
        return None
    finally:
        end.close()


def _answer(end: NetworkExchange, rule: WaitRule) -> None:
    layout = end.layout
    rows = layout.shape.attention * layout.max_tokens
    sums = torch.zeros(rows, layout.hidden_size, dtype=layout.sum_dtype)
    port = end.expert_port(layout.membership.rank(end.instance), rule)
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
    def packed_plans(self) -> int:
        self.used = self.source
        return self.source.packed_plans

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
        self, end: NetworkExchange, order: ExchangeOrder, rule: WaitRule, meeting: Rendezvous
    ) -> None:
        self._order = order
        self._layout = order.layout
        self.rank = order.layout.membership.rank(order.instance)
        self._meeting = meeting
        self._plans = distinct_plans(order.layout)
        self._switch = _Switch(FixedPlan("1pc"), [])
        end.source = self._switch
        self.port: AttentionPort = end.attention_port(self.rank, rule)
        dtype = TORCH_DTYPES[order.layout.dtype]
        self._hidden = torch.zeros(order.layout.max_tokens, order.layout.hidden_size, dtype=dtype)
        self._chosen = ""

    def run(self) -> ExchangeTimes:
        order = self._order
        chooser: PlanSource = FixedPlan("1pc")
        again = [plan + AGAIN for plan in self._plans] if order.repeat == "twice" else []
        profiled, compared = TimesSoFar(), TimesSoFar()
        learned: dict[int, int] = {}
        for number in range(order.passes):
            for tokens in order.batches:
                self._measure(f"profile {number}", profiled, tokens, self._plans, chooser)
            if number == 0 and self.rank == 0 and order.compared:
                model = fit_timed(self._layout, profiled.all()).model
                layout = self._layout
                chooser = PlanChooser(layout.topology, layout.row_bytes, model)
            for tokens in order.compared:
                if number == 0:
                    learned[tokens] = self._learn(chooser, tokens)
                variants = [*self._plans, *again, "auto"]
                self._measure(f"compare {number}", compared, tokens, variants, chooser)
        links = {}
        if self.rank == 0:
            model = fit_timed(self._layout, profiled.all()).model
            links = {name: getattr(model, name) for name in COEFFICIENTS}
        return ExchangeTimes(
            profiled=profiled.all(),
            compared=compared.all(),
            links=links,
            notices=tuple(self._switch.notices),
            learned=learned,
        )

    def _learn(self, chooser: PlanSource, tokens: int) -> int:
        """Steps until the choice has settled, as attention instance 0 says."""
        for steps in range(LEARN_STEPS, MOST_LEARN_STEPS + 1, LEARN_STEPS):
            for _ in range(LEARN_STEPS):
                self._step(chooser, tokens)
            key = f"learnt/{tokens}/{steps}"
            if self.rank == 0:
                done = isinstance(chooser, PlanChooser) and chooser.settled(tokens)
                self._meeting.put(key, b"1" if done else b"")
            if self._meeting.get(key, SYNC_S):
                return steps
        return MOST_LEARN_STEPS

    def _measure(
        self,
        phase: str,
        found: TimesSoFar,
        tokens: int,
        variants: Sequence[str],
        chooser: PlanSource,
    ) -> None:
        """All variants by turns, as many rounds as the budget allows, after two that warm up."""
        started = 0.0
        for _ in range(2):  # the first time, programs and buffers are made
            started = time.perf_counter()
            for _, source in self._sources(variants, chooser):
                self._step(source, tokens)
        rounds = self._agree(f"{phase}/{tokens}", time.perf_counter() - started)
        for number in range(rounds):
            turn = list(self._sources(variants, chooser))
            turn = turn[number % len(turn) :] + turn[: number % len(turn)]  # nobody is always first
            for variant, source in turn if number % 2 else reversed(turn):
                found.add(variant, tokens, self._step(source, tokens), self._chosen)

    def _sources(
        self, variants: Sequence[str], chooser: PlanSource
    ) -> Iterator[tuple[str, PlanSource]]:
        for variant in variants:
            plan = variant.removesuffix(AGAIN)
            if plan != "auto":
                yield variant, FixedPlan(next(name for name in EXCHANGE_PLANS if name == plan))
            else:
                yield variant, chooser

    def _agree(self, key: str, seconds: float) -> int:
        """Rounds that fit the budget, as attention instance 0 says."""
        if self.rank == 0:
            rounds = int(self._order.budget_s / self._order.passes / max(seconds, 1e-3))
            rounds = min(max(rounds, LEAST_ROUNDS), MOST_ROUNDS)
            self._meeting.put(key, str(rounds).encode())
            return rounds
        return int(self._meeting.get(key, SYNC_S))

    def _step(self, source: PlanSource, tokens: int) -> list[float]:
        """Seconds of its layer passes but the first, which also waits for the peers."""
        mine = spread(tokens, self._layout.shape.attention)[self.rank]
        self._switch.source = source
        self.port.begin_step(mine)
        seconds = []
        for layer in range(LAYERS if mine else 0):
            started = time.perf_counter()
            combined = self.port.combine(self.port.dispatch(layer, self._hidden[:mine]))
            seconds.append(time.perf_counter() - started)
            self._chosen = combined.plan
        return seconds[1:]

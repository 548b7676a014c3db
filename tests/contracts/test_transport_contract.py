"""What every exchange promises; one suite for all backends.

Instances live in threads here; `test_shared_memory_processes.py` and `test_exchange_processes.py`
in `tests/transport` repeat the core of it with processes. `threads 1pc` is an exchange of one end
per instance under plan 1pc, over channels among threads; `gloo 1pc` is the same over gloo, and
`hosts 1pc` over gloo between nodes and through shared memory within them, as services have it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.transport.network.local_network import LocalNetwork
from torch import Tensor

from janus_moe.errors import (
    ConfigError,
    ExchangeClosed,
    ExchangeError,
    ExchangeTimeout,
    RoutingDivergence,
)
from janus_moe.spec import EXCHANGE_PLANS, ExchangePlanName, Membership, PoolShape
from janus_moe.transport import (
    AttentionPort,
    Combined,
    Exchange,
    ExchangeLayout,
    ExpertPort,
    ReplyMetadata,
    Ticket,
    WaitRule,
    Work,
)
from janus_moe.transport.host_memory.shared_memory import open_shared_memory
from janus_moe.transport.loopback import LoopbackExchange
from janus_moe.transport.network.exchange import NetworkExchange, open_network
from janus_moe.transport.network.rendezvous import MemoryRendezvous

HIDDEN = 8
MAX_TOKENS = 64
PATIENT = WaitRule(timeout_s=20.0)
HASTY = WaitRule(timeout_s=0.5)
SHARED = ("loopback-inline", "loopback-threads", "shm")  # all instances look at one control block
DIST = tuple(f"threads {plan}" for plan in (*EXCHANGE_PLANS, "auto"))
GLOO = tuple(f"{kind} {plan}" for kind in ("gloo", "hosts") for plan in (*EXCHANGE_PLANS, "auto"))
BACKENDS = (*SHARED, "threads 2pc-direct", "hosts 2pc-relay")
APART = ("loopback-threads", "shm", "threads 2pc-direct", "hosts 2pc-relay")  # no expert inline

Respond = Callable[[int, Work], tuple[Tensor, ReplyMetadata]]


# --- the pools ----------------------------------------------------------------------------------


def rows(instance: int, step: int, layer: int, num_tokens: int) -> Tensor:
    """[num_tokens, HIDDEN] float32, what attention `instance` dispatches."""
    generator = torch.Generator().manual_seed(instance + 100 * step + 10_000 * layer)
    return torch.randn(num_tokens, HIDDEN, generator=generator)


def partial_sums(expert: int, layer: int, batch: Tensor) -> Tensor:
    """[total, HIDDEN] float32; depends on the row's place in the batch, as a mix-up would show."""
    place = torch.arange(batch.shape[0], dtype=torch.float32).unsqueeze(1)
    return torch.sin(batch * (expert + 1.7) + 0.01 * place) / (layer + 3)


def expected(
    counts: tuple[int, ...], expert_nodes: tuple[int, ...], step: int, layer: int
) -> list[Tensor]:
    """[attention instances] each [tokens, HIDDEN]: the sum in float64, rounded once, whatever nodes
    the experts are on."""
    batch = torch.cat([rows(i, step, layer, count) for i, count in enumerate(counts)])
    partials = [partial_sums(e, layer, batch).double() for e in range(len(expert_nodes))]
    return list(torch.split(torch.stack(partials).sum(0).float(), list(counts)))


def respond(expert: int, work: Work) -> tuple[Tensor, ReplyMetadata]:
    ticket = work.ticket
    batch = torch.cat(
        [rows(i, ticket.step, ticket.layer, count) for i, count in enumerate(work.num_tokens)]
    )
    assert torch.equal(work.hidden, batch), "the batch is not the participants' concatenation"
    metadata = ReplyMetadata(routing_digest=-ticket.layer - 5, activated=expert + ticket.step)
    return partial_sums(expert, ticket.layer, work.hidden), metadata


class Fleet:
    """Ends of an exchange as processes hold them, one per instance, gathered in one process.

    Nodes are uneven, and one hosts instances of both pools.
    """

    def __init__(self, backend: str, shape: PoolShape) -> None:
        kind, plan = backend.split()
        self.layout = ExchangeLayout(
            membership=Membership.on_hosts(
                tuple(i % 2 for i in range(shape.attention)),
                tuple(1 + (e * e) % 3 for e in range(shape.expert)),
            ),
            max_tokens=MAX_TOKENS,
            hidden_size=HIDDEN,
            dtype="float32",
            plan=cast(ExchangePlanName, plan),
            within_nodes="gloo" if kind == "gloo" else "memory",
        )
        instances = self.layout.membership.instances
        self.ends: list[NetworkExchange]
        if kind == "threads":
            network = LocalNetwork(len(instances))
            ends = [network.channel(rank) for rank in range(len(instances))]
            self.ends = [
                NetworkExchange(self.layout, instance, end)
                for instance, end in zip(instances, ends, strict=True)
            ]
        else:
            meeting = MemoryRendezvous()
            with ThreadPoolExecutor(len(instances)) as threads:
                joins = [
                    threads.submit(open_network, self.layout, instance, meeting, "127.0.0.1")
                    for instance in instances
                ]
                self.ends = [join.result(60) for join in joins]

    def attention_port(self, rank: int, rule: WaitRule) -> AttentionPort:
        return self.ends[rank].attention_port(rank, rule)

    def expert_port(self, rank: int, rule: WaitRule) -> ExpertPort:
        return self.ends[self.layout.shape.attention + rank].expert_port(rank, rule)

    def shutdown(self) -> None:
        self.ends[-1].shutdown()  # the others learn it

    def close(self) -> None:
        for end in self.ends:
            end.close()


class Pools:
    """Both pools in threads over one exchange; `experts` fail the test when they fail."""

    def __init__(self, backend: str, shape: PoolShape, rule: WaitRule = PATIENT) -> None:
        self.inline = backend == "loopback-inline"
        self.expert_nodes = (0,) * shape.expert
        self.exchange: Exchange
        if backend in (*DIST, *GLOO):
            fleet = Fleet(backend, shape)
            self.exchange = fleet
            self.expert_nodes = fleet.layout.membership.expert_hosts
        elif backend == "shm":
            membership = Membership.first(shape)
            layout = ExchangeLayout(
                membership=membership, max_tokens=MAX_TOKENS, hidden_size=HIDDEN, dtype="float32"
            )
            self.exchange = open_shared_memory(layout, membership.instances, MemoryRendezvous())
        else:
            self.exchange = LoopbackExchange(Membership.first(shape))
        self.attention = [self.exchange.attention_port(i, rule) for i in range(shape.attention)]
        self.shape = shape
        self.rule = rule
        self.threads = ThreadPoolExecutor(shape.attention + shape.expert)
        self.experts: list[Future[None]] = []

    def start_experts(self, answer: Respond = respond, missing: tuple[int, ...] = ()) -> None:
        for expert in range(self.shape.expert):
            if expert in missing:
                continue
            if isinstance(self.exchange, LoopbackExchange) and self.inline:
                self.exchange.serve(expert, partial(_serve_once, expert, answer))
            else:
                port = self.exchange.expert_port(expert, self.rule)
                self.experts.append(self.threads.submit(_serve, expert, port, answer))

    def stop(self) -> None:
        self.exchange.shutdown()
        self.threads.shutdown()
        self.exchange.close()


def _serve_once(expert: int, answer: Respond, port: ExpertPort) -> None:
    work = port.accept()
    if work is not None:
        port.reply(work, *answer(expert, work))


def _serve(expert: int, port: ExpertPort, answer: Respond) -> None:
    with suppress(ExchangeClosed):
        while True:
            _serve_once(expert, answer, port)


@contextmanager
def running(backend: str, shape: tuple[int, int], rule: WaitRule = PATIENT) -> Iterator[Pools]:
    pools = Pools(backend, PoolShape(attention=shape[0], expert=shape[1]), rule)
    try:
        yield pools
    finally:
        pools.stop()


def take_steps(
    port: AttentionPort, instance: int, schedule: list[tuple[int, ...]], num_layers: int
) -> list[list[tuple[Tensor, tuple[ReplyMetadata, ...]]]]:
    """[steps][layers] what attention `instance` combined, empty for its idle steps."""
    history = []
    for step, counts in enumerate(schedule):
        assert port.begin_step(counts[instance]) == step
        layers = []
        for layer in range(num_layers if counts[instance] else 0):
            hidden = rows(instance, step, layer, counts[instance])
            ticket = port.dispatch(layer, hidden)
            assert ticket == Ticket(epoch=0, step=step, layer=layer)
            hidden.fill_(float("nan"))  # dispatch has copied it
            combined = port.combine(ticket)
            layers.append((combined.hidden.clone(), combined.replies))
        history.append(layers)
    return history


# --- results ------------------------------------------------------------------------------------

shapes = st.tuples(st.integers(1, 4), st.integers(1, 5))


@st.composite
def schedules(draw: st.DrawFn) -> tuple[tuple[int, int], list[tuple[int, ...]]]:
    shape = draw(shapes)
    tokens = st.one_of(st.just(0), st.integers(1, MAX_TOKENS))
    step = st.tuples(*[tokens] * shape[0])
    return shape, draw(st.lists(step, min_size=1, max_size=4))


@pytest.mark.parametrize("backend", SHARED)
@settings(max_examples=25, deadline=None)
@given(case=schedules(), num_layers=st.integers(1, 3))
def test_results_are_the_plain_sum_bit_for_bit(
    backend: str, case: tuple[tuple[int, int], list[tuple[int, ...]]], num_layers: int
) -> None:
    shape, schedule = case
    check_results(backend, shape, schedule, num_layers)


@pytest.mark.parametrize("backend", DIST)
@settings(max_examples=10, deadline=None)
@given(case=schedules())
def test_results_of_every_plan_are_the_plain_sum_bit_for_bit(
    backend: str, case: tuple[tuple[int, int], list[tuple[int, ...]]]
) -> None:
    shape, schedule = case
    check_results(backend, shape, schedule, num_layers=2)


@pytest.mark.parametrize("backend", GLOO)
@pytest.mark.parametrize("shape", ((1, 1), (3, 4)))
def test_results_over_gloo_are_the_plain_sum_bit_for_bit(
    backend: str, shape: tuple[int, int]
) -> None:
    schedule = [(7, 3, 12), (0, 64, 5), (1, 0, 0), (0, 0, 0), (2, 2, 64)]
    check_results(backend, shape, [counts[: shape[0]] for counts in schedule], num_layers=3)


def check_results(
    backend: str, shape: tuple[int, int], schedule: list[tuple[int, ...]], num_layers: int
) -> None:
    with running(backend, shape) as pools:
        pools.start_experts()
        futures = [
            pools.threads.submit(take_steps, port, i, schedule, num_layers)
            for i, port in enumerate(pools.attention)
        ]
        histories = [future.result(30) for future in futures]
        expert_nodes = pools.expert_nodes
    for future in pools.experts:
        future.result(0)
    for step, counts in enumerate(schedule):
        for layer in range(num_layers):
            if not any(counts):
                continue
            sums = expected(counts, expert_nodes, step, layer)
            replies = tuple(ReplyMetadata(-layer - 5, expert + step) for expert in range(shape[1]))
            for instance, count in enumerate(counts):
                if count:
                    hidden, seen = histories[instance][step][layer]
                    assert hidden.dtype == torch.float32
                    assert torch.equal(hidden, sums[instance])
                    assert seen == replies


@pytest.mark.parametrize("backend", BACKENDS)
def test_many_steps_with_changing_idle_instances(backend: str) -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.randint(-8, 9, (150, 3), generator=generator).clamp(min=0)
    schedule = [tuple(counts) for counts in draws.tolist()]
    with running(backend, (3, 2)) as pools:
        pools.start_experts()
        futures = [
            pools.threads.submit(take_steps, port, i, schedule, 2)
            for i, port in enumerate(pools.attention)
        ]
        for instance, future in enumerate(futures):
            for step, layers in enumerate(future.result(30)):
                for layer, (hidden, _) in enumerate(layers):
                    sums = expected(schedule[step], pools.expert_nodes, step, layer)
                    assert torch.equal(hidden, sums[instance])


@pytest.mark.parametrize("backend", BACKENDS)
def test_diverging_digests_are_an_error_at_every_participant(backend: str) -> None:
    def diverge(expert: int, work: Work) -> tuple[Tensor, ReplyMetadata]:
        return work.hidden.clone(), ReplyMetadata(routing_digest=expert // 2, activated=0)

    with running(backend, (2, 3)) as pools:
        pools.start_experts(diverge)
        for future in _all_take_one_step(pools):
            with pytest.raises(RoutingDivergence, match=r"step 0, layer 0.*expert 2: 1"):
                future.result(10)


def _all_take_one_step(
    pools: Pools,
) -> list[Future[list[list[tuple[Tensor, tuple[ReplyMetadata, ...]]]]]]:
    schedule = [(2,) * pools.shape.attention]
    return [
        pools.threads.submit(take_steps, port, i, schedule, 1)
        for i, port in enumerate(pools.attention)
    ]


# --- misuse -------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_misuse_is_refused_with_the_numbers(backend: str) -> None:
    with running(backend, (1, 1)) as pools:
        pools.start_experts()
        (port,) = pools.attention
        port.begin_step(3)
        with pytest.raises(ValueError, match=r"\(2, 8\) in step 0.* 3 tokens"):
            port.dispatch(0, torch.zeros(2, HIDDEN))
        with pytest.raises(ValueError, match="not in flight"):
            port.combine(Ticket(epoch=0, step=0, layer=0))
        ticket = port.dispatch(4, rows(0, 0, 4, 3))
        with pytest.raises(ValueError, match="combined before the next"):
            port.dispatch(5, torch.zeros(3, HIDDEN))
        with pytest.raises(ValueError, match="between dispatch and combine"):
            port.begin_step(3)
        port.combine(ticket)
        with pytest.raises(ValueError, match="ascending"):
            port.dispatch(4, torch.zeros(3, HIDDEN))
        port.begin_step(0)
        with pytest.raises(ValueError, match="announced with 0 tokens"):
            port.dispatch(0, torch.zeros(0, HIDDEN))


def test_too_many_tokens_for_the_region_name_the_flag() -> None:
    refusal = pytest.raises(ConfigError, match=r"65 tokens.*room for 64.*--max-num-batched-tokens")
    with running("shm", (1, 1)) as pools, refusal:
        pools.attention[0].begin_step(MAX_TOKENS + 1)


# --- deadlines ----------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", APART)
def test_a_missing_expert_is_named(backend: str) -> None:
    with running(backend, (1, 3), HASTY) as pools:
        pools.start_experts(missing=(1,))
        (port,) = pools.attention
        port.begin_step(2)
        ticket = port.dispatch(7, rows(0, 0, 7, 2))
        with pytest.raises(ExchangeTimeout, match=r"expert 1 \(never connected\)") as caught:
            port.combine(ticket)
        assert (caught.value.step, caught.value.layer) == (0, 7)
        # Others get their rows from this instance in a two-phase plan, and may miss it first.
        assert caught.value.stage in ("reply", "dispatch" if "2pc" in backend else "reply")
        assert "expert 0" not in str(caught.value)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_participant_that_does_not_dispatch_is_named_on_both_sides(backend: str) -> None:
    with running(backend, (3, 2), HASTY) as pools:
        pools.start_experts()
        for port in pools.attention:
            port.begin_step(2)
        there = [pools.threads.submit(_exchange, pools.attention[i], i, 3, 2) for i in (0, 2)]
        with pytest.raises(ExchangeTimeout, match=r"^attention 1 \(pid \d+\) did") as caught:
            there[0].result(10)
        assert (caught.value.stage, caught.value.step, caught.value.layer) == ("dispatch", 0, 3)
        for expert in pools.experts:
            with pytest.raises(ExchangeTimeout, match=r"^attention 1 \(pid \d+\) did.*layer 3"):
                expert.result(5)


def _exchange(port: AttentionPort, instance: int, layer: int, num_tokens: int) -> Combined:
    return port.combine(port.dispatch(layer, rows(instance, 0, layer, num_tokens)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_instance_that_does_not_announce_is_named_on_both_sides(backend: str) -> None:
    with running(backend, (2, 1), HASTY) as pools:
        pools.start_experts()
        pools.attention[0].begin_step(2)
        with pytest.raises(ExchangeTimeout, match=r"^attention 1 \(pid \d+\)") as caught:
            pools.attention[0].dispatch(5, rows(0, 0, 5, 2))
        # Among processes, the expert instance may have told it first, and knows of no layer yet.
        assert caught.value.stage == "announce"
        assert caught.value.layer in ((5,) if backend in SHARED else (5, 0))
        for expert in pools.experts:
            with pytest.raises(ExchangeTimeout, match=r"attention 1.*stage announce, step 0"):
                expert.result(5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_long_step_that_gets_on_is_not_a_timeout_for_those_who_wait(backend: str) -> None:
    with running(backend, (2, 1), HASTY) as pools:
        pools.start_experts(lambda expert, work: (work.hidden.clone(), ReplyMetadata(0, 0)))
        busy, idle = pools.attention
        busy.begin_step(2)
        idle.begin_step(0)
        idle.begin_step(4)
        waiting = pools.threads.submit(idle.dispatch, 0, torch.zeros(4, HIDDEN))
        for layer in range(6):
            time.sleep(0.2)
            busy.combine(busy.dispatch(layer, torch.zeros(2, HIDDEN)))
        assert not waiting.done()
        busy.begin_step(0)
        idle.combine(waiting.result(5))


@pytest.mark.parametrize("num_attention", (1, 3))
def test_a_failing_expert_surfaces_in_every_attention_instance(num_attention: int) -> None:
    def fail(expert: int, work: Work) -> tuple[Tensor, ReplyMetadata]:
        if expert == 1:
            raise ArithmeticError("no more bits")
        return work.hidden, ReplyMetadata(0, 0)

    with running("loopback-inline", (num_attention, 2)) as pools:
        pools.start_experts(fail)
        for future in _all_take_one_step(pools):
            with pytest.raises(ExchangeError, match=r"expert 1.*no more bits") as caught:
                future.result(10)
            assert isinstance(caught.value.__cause__, ArithmeticError)


# --- waiting ------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_announcement_ends_the_wait_of_an_idle_peer(backend: str) -> None:
    with running(backend, (2, 1)) as pools:
        first, second = pools.attention
        assert not second.step_pending()
        waiting = pools.threads.submit(_wait_until_pending, second)
        time.sleep(0.05)
        assert not waiting.done()
        first.begin_step(1)
        waiting.result(5)
        assert second.step_pending()
        assert not first.step_pending()
        second.begin_step(0)
        assert not second.step_pending()


def _wait_until_pending(port: AttentionPort) -> None:
    while not port.step_pending():
        port.wait(None)


@pytest.mark.parametrize("backend", BACKENDS)
def test_wake_ends_waits_promptly_even_when_it_comes_first(backend: str) -> None:
    with running(backend, (1, 1)) as pools:
        (port,) = pools.attention
        expert = pools.exchange.expert_port(0, PATIENT)
        for early in (True, False):
            if early:
                port.wake()
                expert.wake()
            started = time.monotonic()
            waits: list[Future[Any]] = [
                pools.threads.submit(port.wait, None),
                pools.threads.submit(expert.accept),
            ]
            if not early:
                time.sleep(0.05)
                port.wake()
                expert.wake()
            assert [wait.result(5) for wait in waits] == [None, None]
            assert time.monotonic() - started < 1.0


@pytest.mark.parametrize("backend", BACKENDS)
def test_wait_ends_at_its_timeout(backend: str) -> None:
    with running(backend, (1, 1)) as pools:
        started = time.monotonic()
        pools.attention[0].wait(0.05)
        assert 0.03 < time.monotonic() - started < 2.0


@pytest.mark.parametrize("backend", APART)
@pytest.mark.parametrize("all_at_once", (True, False))
def test_closing_ends_waits_promptly(backend: str, all_at_once: bool) -> None:
    with running(backend, (2, 2)) as pools:
        first, second = pools.attention
        experts = [pools.exchange.expert_port(e, PATIENT) for e in range(2)]
        first.begin_step(1)
        waits: list[Future[Any]] = [
            pools.threads.submit(first.dispatch, 0, torch.zeros(1, HIDDEN)),
            pools.threads.submit(_wait_forever, second),
            *(pools.threads.submit(expert.accept) for expert in experts),
        ]
        time.sleep(0.05)
        started = time.monotonic()
        if all_at_once:
            pools.exchange.shutdown()
        else:
            for port in pools.attention:
                port.close()
            for expert in experts:
                expert.close()
        for wait in waits:
            with pytest.raises(ExchangeClosed):
                wait.result(5)
        assert time.monotonic() - started < 1.0
        with pytest.raises(ExchangeClosed):
            first.begin_step(0)


def _wait_forever(port: AttentionPort) -> None:
    while True:
        port.wait(None)


@pytest.mark.parametrize("backend", APART)
def test_blocked_instances_use_no_processor_time(backend: str) -> None:
    with running(backend, (3, 2)) as pools:
        pools.start_experts(missing=(1,))
        waits = [pools.threads.submit(_wait_quietly, port) for port in pools.attention[:2]]
        before = threading.active_count()
        time.sleep(0.05)
        started = time.process_time()
        time.sleep(0.3)
        assert time.process_time() - started < 0.03
        assert threading.active_count() == before
        pools.exchange.shutdown()
        for wait in waits:
            wait.result(5)


def _wait_quietly(port: AttentionPort) -> None:
    with suppress(ExchangeClosed):
        _wait_forever(port)


@pytest.mark.parametrize("backend", APART)
def test_a_blocked_combine_uses_no_processor_time(backend: str) -> None:
    with running(backend, (1, 1)) as pools:
        (port,) = pools.attention
        port.begin_step(1)
        waiting = pools.threads.submit(port.combine, port.dispatch(0, torch.zeros(1, HIDDEN)))
        time.sleep(0.05)
        started = time.process_time()
        time.sleep(0.3)
        assert time.process_time() - started < 0.03
        pools.exchange.shutdown()
        with pytest.raises(ExchangeClosed):
            waiting.result(5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_see_the_latest_epoch_that_anybody_announced_for_a_step(backend: str) -> None:
    """One instance learns of epochs before the other; tickets of a step agree, and never fall."""
    seen: dict[int, set[int]] = {}
    lock = threading.Lock()

    def answer(expert: int, work: Work) -> tuple[Tensor, ReplyMetadata]:
        with lock:
            seen.setdefault(work.ticket.step, set()).add(work.ticket.epoch)
        return respond(expert, work)

    with running(backend, (2, 2)) as pools:
        pools.start_experts(answer)
        learned = [
            {2: 1, 7: 5},
            {4: 1, 5: 3, 6: 2},
        ]  # per instance: step -> epoch learned before it
        expected_epochs = [0, 0, 1, 1, 1, 3, 3, 5, 5, 5]

        def live(instance: int) -> list[int]:
            port, epochs = pools.attention[instance], []
            for step in range(len(expected_epochs)):
                if step in learned[instance]:
                    port.use_epoch(learned[instance][step])
                port.begin_step(1 + instance)
                ticket = port.dispatch(0, rows(instance, step, 0, 1 + instance))
                port.combine(ticket)
                epochs.append(ticket.epoch)
            return epochs

        lives = [pools.threads.submit(live, instance) for instance in range(2)]
        assert [life.result(20) for life in lives] == [expected_epochs] * 2
    assert seen == {step: {epoch} for step, epoch in enumerate(expected_epochs)}

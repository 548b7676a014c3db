"""A step that its exchange raises out of leaves no trace: it is computed again over another one.

An error is raised at announcing, dispatch and combine of every layer of every step. Afterwards the
instance is compared, field by field, with one that was never disturbed. What a step has planned
stays planned: planning again gives the same step. Every kind of attention has to pass this.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Set
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from tests.attention.frozen_state import Freezer, differences
from tests.attention.pools import Attention, Weights, reports_of, tokens_of
from tests.checkpoints import make_checkpoint
from torch import Tensor

from janus_moe.errors import PeerLost
from janus_moe.messages import StepDone
from janus_moe.transport import AttentionPort, Combined, Ticket

NO_STATE = {"_ports", "_experts", "_model", "_spans", "spans"}
SHARED = list(range(40, 52))
TIMES = ("step_seconds", "dispatch_seconds", "combine_seconds", "scheduler_seconds")
MAX_STEPS = 200


class Place(NamedTuple):
    """Where an exchange fails.

    stage: "begin", "dispatch" or "combine".
    layer: of dispatch and combine; 0 for "begin".
    port: of which micro-batch.
    """

    stage: str
    layer: int
    port: int


class FailingPort:
    """Passes calls on until one of them is to fail."""

    def __init__(self, port: AttentionPort, number: int, place: Place) -> None:
        self._port = port
        self._number = number
        self._place = place

    def begin_step(self, num_tokens: int) -> int:
        self._fail("begin", 0)
        return self._port.begin_step(num_tokens)

    def dispatch(self, layer: int, hidden: Tensor) -> Ticket:
        self._fail("dispatch", layer)
        return self._port.dispatch(layer, hidden)

    def combine(self, ticket: Ticket) -> Combined:
        self._fail("combine", ticket.layer)
        return self._port.combine(ticket)

    def _fail(self, stage: str, layer: int) -> None:
        if (stage, layer, self._number) == self._place:
            raise PeerLost(peer="expert 1", stage=stage, step=0, layer=layer)


@pytest.fixture(scope="module", params=["qwen3_moe", "deepseek_v3"])
def weights(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    folder: Path = tmp_path_factory.mktemp(request.param) / "model"
    return Weights(make_checkpoint(folder, request.param, seed=4))


def make_attention(weights: Weights, num_ports: int) -> Attention:
    """Steps of few tokens and a cache that is too small for all: chunks and preemption."""
    return Attention(
        weights,
        num_ports=num_ports,
        micro_batch_threshold=2 if num_ports > 1 else 0,
        max_num_batched_tokens=9,
        num_blocks=10,
        prefix_caching=True,
    )


def arrive(attention: Attention, step: int) -> None:
    """The requests that come before a step."""
    options = {"temperature": 0.9, "logprobs": 1, "prompt_logprobs": 1, "max_tokens": 8}
    match step:
        case 0:
            attention.add("long", [*SHARED, *range(7)], **options)
            attention.add("b", [9, 8, 7], **options)
            attention.add("c", [5, 6, 7], **options)
        case 4:
            attention.add("resumed", [*SHARED, 99, 98], position=2, frequency_penalty=0.7)
            attention.add("scored", [*SHARED, 3], max_tokens=0, prompt_logprobs=0)
        case 14:
            attention.add("cached", [*SHARED, 60], min_tokens=2, stop_token_ids=(1, 2))
            attention.add("aborted", [4, 4, 4, 4])
        case 16:
            attention.instance.abort("aborted", 1)


def places(weights: Weights, num_ports: int) -> list[Place]:
    layers = weights.spec.moe_layer_ids
    stages = [("begin", 0), *((s, layer) for layer in layers for s in ("dispatch", "combine"))]
    return [Place(*stage, port) for stage in stages for port in range(num_ports)]


def connect_failing(attention: Attention, place: Place) -> None:
    """New exchanges, of which one fails there."""
    numbers = iter(range(attention.num_ports))

    def wrap(port: AttentionPort) -> FailingPort:
        return FailingPort(port, next(numbers), place)

    attention.connect(wrap)


def fail(attention: Attention, place: Place) -> None:
    """A step fails there, over exchanges of its own; the next one has new ones.

    With one micro-batch the second port only announces, so a step may pass its other places.
    """
    connect_failing(attention, place)
    with pytest.raises(PeerLost):
        attention.instance.step()
    attention.connect()


def reached(attention: Attention, place: Place) -> bool:
    """Whether the next step comes by this place."""
    if place.port == 0 or place.stage == "begin":
        return True
    plan = attention.instance._batcher.plan()
    return len(plan.micro_batches(2)) > 1


def state(attention: Attention, leave_out: Set[str] = NO_STATE) -> Any:
    return Freezer(leave_out).freeze(attention.instance)


def without_times(done: StepDone) -> StepDone:
    outputs = tuple(
        msgspec.structs.replace(one, queued_seconds=one.queued_seconds and 0.0)
        for one in done.outputs
    )
    return msgspec.structs.replace(done, outputs=outputs, **dict.fromkeys(TIMES, 0.0))


class Run(NamedTuple):
    """All requests served.

    attention: the instance at the end.
    planned: before each step, when it has been planned, and maybe dropped; without the runner.
    states: after each step.
    dropped: how many steps were dropped.
    """

    attention: Attention
    planned: list[Any]
    states: list[Any]
    dropped: int = 0


def run(
    weights: Weights,
    num_ports: int,
    failures: Callable[[int], list[Place] | None] = lambda _: None,
) -> Run:
    """Serves all requests.

    failures: number of the step -> where it fails, one after the other.
    """
    attention, dropped = make_attention(weights, num_ports), 0
    planned, states = list[Any](), list[Any]()
    for number in range(MAX_STEPS):
        arrive(attention, number)
        if not attention.instance.has_work and number > 16:
            return Run(attention, planned, states, dropped)
        for place in failures(number) or ():
            if attention.instance.has_work and reached(attention, place):
                fail(attention, place)
                dropped += 1
        attention.instance._batcher.plan()
        planned.append(state(attention, NO_STATE | {"_runner"}))
        if attention.instance.has_work:
            attention.step()
        states.append(state(attention))
    raise AssertionError("requests do not end")


def assert_equal(one: Run, other: Run) -> None:
    for left_states, right_states in ((one.planned, other.planned), (one.states, other.states)):
        for number, (left, right) in enumerate(zip(left_states, right_states, strict=True)):
            assert not (found := differences(left, right)), (number, found[:5])
    for expected, seen in zip(one.attention.steps, other.attention.steps, strict=True):
        assert without_times(seen) == without_times(expected)


@pytest.mark.timeout(400)  # the first one compiles nearly all kernels
@pytest.mark.parametrize("num_ports", [1, 2])
def test_failures_at_every_place_of_every_step_change_nothing(
    weights: Weights, num_ports: int
) -> None:
    undisturbed = run(weights, num_ports)
    everywhere = places(weights, num_ports)
    disturbed = run(weights, num_ports, lambda _: everywhere)
    assert disturbed.dropped >= len(disturbed.attention.steps) * len(everywhere) // num_ports
    assert_equal(undisturbed, disturbed)
    assert disturbed.attention.blocks.usage == 0.0


def test_a_single_failure_at_a_random_place_changes_nothing(weights: Weights) -> None:
    """What a second failure would hide shows after one."""
    undisturbed, rng = run(weights, 1), random.Random(3)
    everywhere = places(weights, 1)
    for _ in range(6):
        chosen = {number: rng.choices(everywhere) for number in rng.sample(range(MAX_STEPS), 90)}
        assert_equal(undisturbed, run(weights, 1, chosen.get))


def test_the_steps_of_these_claims_are_of_every_kind(weights: Weights) -> None:
    steps = run(weights, 2).attention.steps
    assert any(not step.outputs for step in steps), "a prompt in chunks"
    ends = [sum(one.finish_reason is not None for one in step.outputs) for step in steps]
    assert max(ends) >= 2, "several requests finish"
    assert steps[-1].num_preemptions > 0, "a plan that preempts"
    assert reports_of(steps, "cached")[0].num_cached_tokens > 0
    assert reports_of(steps, "scored")[0].prompt_logprobs is not None
    assert reports_of(steps, "long")[0].prompt_logprobs is not None
    assert reports_of(steps, "resumed")[0].position == 2
    layers = len(weights.spec.moe_layer_ids)
    passes = {step.activity.layers for step in steps if step.activity is not None}
    assert passes == {layers, 2 * layers}, "whole steps and micro-batches"


def test_requests_may_come_and_go_between_a_failure_and_the_step_after_it(
    weights: Weights,
) -> None:
    """They may change what is computed together; tokens and blocks stay right."""
    rng = random.Random(5)
    prompts = {f"r{n}": [*SHARED[: rng.randint(0, 9)], *range(n, n + 4)] for n in range(24)}
    expected = {}
    for name, prompt in prompts.items():
        alone = Attention(weights)
        alone.add(name, prompt, max_tokens=5)
        expected[name] = alone.run()[name]
    attention, waiting, aborted = make_attention(weights, 1), list(prompts), set[str]()
    everywhere = places(weights, 1)
    while waiting or attention.instance.has_work:
        if attention.instance.has_work and rng.random() < 0.5:
            fail(attention, rng.choice(everywhere))
        if waiting and rng.random() < 0.4:
            name = waiting.pop()
            attention.add(name, prompts[name], max_tokens=5)
        if rng.random() < 0.05:
            aborted.add(name := rng.choice([*prompts]))
            attention.instance.abort(name, 1)
        attention.instance._batcher.check()
        if attention.instance.has_work:
            attention.step()
    tokens = tokens_of(attention.steps)
    for name in prompts:
        seen = tokens.get(name, [])
        assert seen == expected[name][: len(seen)]
        assert name in aborted or len(seen) == 5
    assert attention.blocks.usage == 0.0


@pytest.mark.parametrize("num_ports", [1, 2])
def test_an_idle_instance_keeps_its_state_when_it_cannot_follow(
    weights: Weights, num_ports: int
) -> None:
    """It announces nothing but zero tokens."""
    attention = make_attention(weights, num_ports)
    attention.add("r", SHARED, max_tokens=2)
    attention.run()
    before = state(attention)
    for port in range(num_ports):
        connect_failing(attention, Place("begin", 0, port))
        with pytest.raises(PeerLost):
            attention.instance._announce(())
        assert not differences(before, state(attention))


def test_a_trace_shows_how_far_a_dropped_step_came_and_then_the_whole_step(
    weights: Weights,
) -> None:
    layer = weights.spec.moe_layer_ids[1]
    traces = []
    for places_of_step in ([], [Place("combine", layer, 0)]):
        attention = make_attention(weights, 1)
        attention.add("r", SHARED[:4], max_tokens=3)
        attention.step()
        attention.instance._spans.start()
        attention.step()
        for place in places_of_step:
            fail(attention, place)
        attention.step()
        traces.append([(span.name, span.layer) for span in attention.instance._spans.stop()])
    whole, with_dropped = traces
    end = whole.index(("sample", -1)) + 1
    step = whole[end:]
    dropped = step[: step.index(("combine", layer))]
    assert with_dropped == [*whole[:end], *dropped, *step]

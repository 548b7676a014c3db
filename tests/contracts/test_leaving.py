"""What every exchange promises of attention instances that leave while others go on."""

from __future__ import annotations

import time

import pytest
import torch
from tests.contracts.test_transport_contract import (
    APART,
    BACKENDS,
    MAX_TOKENS,
    expected,
    rows,
    running,
    take_steps,
)

from janus_moe.errors import ExchangeEnded
from janus_moe.transport import AttentionPort

STEPS = 40
STAYS = STEPS + 1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("leave_after", [(0, 17, STAYS), (STAYS, 3, 3), (25, STAYS, 0), (5, 9, 7)])
def test_those_that_have_left_count_as_idle(backend: str, leave_after: tuple[int, ...]) -> None:
    """Each takes part in so many steps; the sums are those of the others from then on."""
    schedule = _schedule(leave_after)

    def live(instance: int, port: AttentionPort) -> list[list[torch.Tensor]]:
        history = take_steps(port, instance, schedule[: leave_after[instance]], 2)
        if leave_after[instance] < STAYS:
            port.leave()
        return [[hidden for hidden, _ in layers] for layers in history]

    with running(backend, (3, 2)) as pools:
        pools.start_experts()
        futures = [pools.threads.submit(live, i, port) for i, port in enumerate(pools.attention)]
        for instance, future in enumerate(futures):
            for step, layers in enumerate(future.result(30)):
                for layer, hidden in enumerate(layers):
                    sums = expected(schedule[step], pools.expert_nodes, step, layer)
                    assert torch.equal(hidden, sums[instance])


def _schedule(leave_after: tuple[int, ...]) -> list[tuple[int, ...]]:
    """[steps][instances] tokens; about half of the instances are idle in a step."""
    generator = torch.Generator().manual_seed(sum(leave_after))
    draws = torch.randint(-8, 9, (STEPS, 3), generator=generator).clamp(min=0).tolist()
    return [
        tuple(count if step < last else 0 for count, last in zip(counts, leave_after, strict=True))
        for step, counts in enumerate(draws)
    ]


@pytest.mark.parametrize("backend", APART)
def test_expert_instances_end_when_all_have_left(backend: str) -> None:
    with running(backend, (2, 2)) as pools:
        endings = [
            pools.threads.submit(_last_words, pools.exchange.expert_port(rank, pools.rule))
            for rank in range(2)
        ]
        pools.attention[0].begin_step(0)
        pools.attention[1].begin_step(0)
        pools.attention[1].leave()
        pools.attention[0].begin_step(0)
        assert not any(ending.done() for ending in endings)
        pools.attention[0].leave()
        for ending in endings:
            assert "all attention instances have left generation 0" in ending.result(10)


def _last_words(port: object) -> str:
    with pytest.raises(ExchangeEnded) as caught:
        port.accept()  # type: ignore[attr-defined]
    return str(caught.value)


@pytest.mark.parametrize("backend", BACKENDS)
def test_leaving_ends_the_wait_of_the_others_and_is_no_pending_step(backend: str) -> None:
    with running(backend, (2, 1)) as pools:
        first, second = pools.attention
        first.begin_step(0)
        deadline = time.monotonic() + 10
        while not second.step_pending() and time.monotonic() < deadline:
            second.wait(1.0)  # may return early
        assert second.step_pending()
        second.leave()
        assert not first.step_pending()
        assert first.begin_step(0) == 1
        assert first.begin_step(0) == 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_leaving_in_the_middle_of_an_exchange_is_refused(backend: str) -> None:
    with running(backend, (1, 1)) as pools:
        pools.start_experts()
        (port,) = pools.attention
        port.begin_step(MAX_TOKENS)
        ticket = port.dispatch(0, rows(0, 0, 0, MAX_TOKENS))
        with pytest.raises(ValueError, match="leave between dispatch and combine"):
            port.leave()
        port.combine(ticket)
        port.leave()

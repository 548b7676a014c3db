"""A step that its exchange raises out of leaves no trace: it is computed again over another one."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.attention.pools import Attention, Weights, reports_of
from tests.checkpoints import make_checkpoint
from torch import Tensor

from janus_moe.errors import PeerLost
from janus_moe.transport import AttentionPort, Combined, Ticket

PROMPTS = {"a": list(range(40, 59)), "b": [9, 8, 7], "c": [5]}
OPTIONS: dict[str, Any] = {"temperature": 0.9, "logprobs": 1, "prompt_logprobs": 1}


class FailingPort:
    """Passes calls on until one of them is to fail.

    place: "begin", "dispatch" or "combine", and the layer, which is 0 for "begin".
    """

    def __init__(self, port: AttentionPort, place: tuple[str, int]) -> None:
        self._port = port
        self._fails_at = place

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
        if (stage, layer) == self._fails_at:
            raise PeerLost(peer="expert 1", stage=stage, step=0, layer=layer)


@pytest.fixture(scope="module", params=["qwen3_moe", "deepseek_v3"])
def weights(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    folder: Path = tmp_path_factory.mktemp(request.param) / "model"
    return Weights(make_checkpoint(folder, request.param, seed=4))


def run(weights: Weights, num_ports: int, failures: dict[int, tuple[str, int]]) -> Attention:
    """All requests served; failures: number of the step -> where its exchange fails once."""
    attention = Attention(
        weights,
        num_ports=num_ports,
        micro_batch_threshold=2,
        max_num_batched_tokens=9,
        num_blocks=10,
        prefix_caching=True,
    )
    for name, prompt in PROMPTS.items():
        attention.add(name, prompt, **OPTIONS)
    for number in range(200):
        if not attention.instance.has_work:
            return attention
        if number in failures:
            attention.connect(partial(FailingPort, place=failures[number]))
            with pytest.raises(PeerLost):
                attention.step()
            attention.connect()
        attention.step()
    raise AssertionError("requests do not end")


@pytest.mark.parametrize("num_ports", [1, 2])
def test_failures_at_every_layer_change_nothing(weights: Weights, num_ports: int) -> None:
    undisturbed = run(weights, num_ports, {})
    places = [(s, layer) for layer in weights.spec.moe_layer_ids for s in ("dispatch", "combine")]
    places.append(("begin", 0))
    rng = np.random.default_rng(num_ports)
    num_steps = len(undisturbed.steps)
    assert num_steps >= len(places)
    order = rng.permutation(num_steps)[: len(places)].tolist()
    disturbed = run(weights, num_ports, dict(zip(order, places, strict=True)))
    assert len(disturbed.steps) == num_steps
    for name in PROMPTS:
        expected, seen = reports_of(undisturbed.steps, name), reports_of(disturbed.steps, name)
        for one, other in zip(expected, seen, strict=True):
            assert one.token_ids == other.token_ids and one.logprobs == other.logprobs
            assert one.prompt_logprobs == other.prompt_logprobs
            assert one.finish_reason == other.finish_reason
            assert one.num_cached_tokens == other.num_cached_tokens
    assert disturbed.steps[-1].num_preemptions == undisturbed.steps[-1].num_preemptions > 0
    assert disturbed.blocks.usage == 0.0

"""Claims about expert instances over the loopback exchange: their sums, epochs and disagreement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.checkpoints import make_checkpoint
from tests.experts.build import expert_instance, next_tables
from tests.model import monolithic

from janus_moe.errors import ExchangeError, RoutingDivergence
from janus_moe.experts.epoch import make_epoch
from janus_moe.experts.instance import ExpertInstance
from janus_moe.model.attention_block import AttentionModel
from janus_moe.model.checkpoint import Checkpoint
from janus_moe.model.config import read_spec
from janus_moe.model.expert_block import ExpertModel
from janus_moe.model.piecewise import expert_pieces
from janus_moe.policy.placement import Placement
from janus_moe.spec import Membership, ModelSpec, PoolShape
from janus_moe.transport import Ticket, WaitRule, Work
from janus_moe.transport.loopback import LoopbackExchange

SPARE = 2
FIRST = Placement(epoch=0, num_experts=5, slots=(((0, 1, 2), (2, 3, 4)),) * 3)
SECOND = Placement(epoch=1, num_experts=5, slots=(((0, 4, 3), (1, 2, 3)),) * 3)


class Pool:
    """A pool of two instances with spare slots."""

    def __init__(self, folder: Path) -> None:
        self.spec: ModelSpec = read_spec(folder, "float32")
        self.checkpoint = Checkpoint.open(folder)
        self.models = [
            ExpertModel.load(
                self.spec,
                self.checkpoint,
                [layer[rank] for layer in FIRST.slots],
                "cpu",
                spare_slots=SPARE,
            )
            for rank in range(2)
        ]
        self.instances = [expert_instance(r, model, FIRST) for r, model in enumerate(self.models)]

    def stage(self, placement: Placement) -> None:
        """Loads what the next placement adds, as an epoch loader does."""
        for instance, model in zip(self.instances, self.models, strict=True):
            epochs = instance.epochs
            experts = [layer[epochs.rank] for layer in placement.slots]
            tables, arrivals = next_tables(epochs.latest.slots, experts, 3 + SPARE)
            for number, expert, slot in arrivals:
                layer = instance.layers[number]
                for piece in expert_pieces(model, self.checkpoint, layer, expert, slot, 1 << 20):
                    piece.load()
            epochs.stage(make_epoch(placement, tables, epochs.schedulers))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("pool") / "model", "qwen3_moe", seed=6)


@pytest.fixture
def pool(folder: Path) -> Pool:
    return Pool(folder)


def rows(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 40, generator=torch.Generator().manual_seed(seed))


def sums(instances: Sequence[ExpertInstance], epoch: int, layer: int, hidden: Any) -> torch.Tensor:
    work = Work(Ticket(epoch, 0, layer), hidden, (len(hidden),))
    replies = [instance.compute(work) for instance in instances]
    assert len({reply.metadata.routing_digest for reply in replies}) == 1
    return torch.stack([reply.partial for reply in replies]).sum(dim=0)


@pytest.mark.parametrize("tokens", [1, 6, 300])
def test_sums_are_those_of_the_undivided_layer_in_every_epoch(pool: Pool, tokens: int) -> None:
    whole = ExpertModel.load(pool.spec, pool.checkpoint, [range(5)] * 3, "cpu")
    attention = AttentionModel.load(pool.spec, pool.checkpoint, "cpu")
    pool.stage(SECOND)
    for epoch in (0, 1):
        for layer in pool.spec.moe_layer_ids:
            hidden = rows(tokens, layer)
            expected = monolithic.moe(attention, [whole], layer, hidden)
            assert torch.allclose(
                sums(pool.instances, epoch, layer, hidden), expected, rtol=1e-4, atol=1e-4
            )


def test_an_epoch_is_served_once_it_is_staged_and_none_comes_back(pool: Pool) -> None:
    instance = pool.instances[0]
    with pytest.raises(ExchangeError, match="expert 0 serves epoch 0 and was not prepared for"):
        sums([instance], 1, 0, rows(2))
    pool.stage(SECOND)
    assert (instance.epochs.current.number, instance.epochs.latest.number) == (0, 1)
    instance.epochs.unstage(1)
    assert instance.epochs.latest.number == 0
    with pytest.raises(ExchangeError, match="epoch 1 of step 0"):
        sums([instance], 1, 0, rows(2))
    pool.stage(replace(SECOND, epoch=2))
    sums([instance], 2, 0, rows(2))
    with pytest.raises(ExchangeError, match="expert 0 serves epoch 2"):
        sums([instance], 0, 0, rows(2))


def test_instances_that_route_differently_are_found_out(pool: Pool) -> None:
    exchange = LoopbackExchange(Membership.first(PoolShape(attention=1, expert=2)))
    for rank, instance in enumerate(pool.instances):
        exchange.serve(rank, instance.serve_once)
    port = exchange.attention_port(0, WaitRule(timeout_s=10))
    with torch.inference_mode():
        port.begin_step(4)
        assert port.combine(port.dispatch(0, rows(4))).hidden.shape == (4, 40)
        pool.models[1].layers[1].router.neg_()
        ticket = port.dispatch(1, rows(4))
        with pytest.raises(RoutingDivergence, match="step 0, layer 1"):
            port.combine(ticket)


class SeenLayers:
    """Stands for the observer."""

    def __init__(self) -> None:
        self.seen: list[int | str] = []

    def batch(self, layer: int, expert_ids: torch.Tensor) -> None:
        assert expert_ids.shape == (3, 3)
        self.seen.append(layer)

    def end_of_step(self) -> None:
        self.seen.append("end")


def test_a_step_ends_with_its_last_layer(pool: Pool) -> None:
    first, observer = pool.instances[0], SeenLayers()
    watched: Any = observer
    instance = ExpertInstance(first.id, first.runner, first.epochs, first.layers, watched)
    exchange = LoopbackExchange(Membership.first(PoolShape(attention=1, expert=2)))
    exchange.serve(0, instance.serve_once)
    exchange.serve(1, pool.instances[1].serve_once)
    port = exchange.attention_port(0, WaitRule(timeout_s=10))
    for _ in range(2):
        port.begin_step(3)
        for layer in pool.spec.moe_layer_ids:
            assert not instance.stepped.is_set()
            port.combine(port.dispatch(layer, rows(3)))
        assert instance.stepped.is_set()
        instance.stepped.clear()
    assert observer.seen == [0, 1, 2, "end"] * 2

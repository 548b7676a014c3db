"""Claims about preparing an epoch: its pace, its end by other orders, and what a failure leaves."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.checkpoints import make_checkpoint
from tests.experts.build import expert_instance

from janus_moe.errors import ExchangeError
from janus_moe.experts import pacing
from janus_moe.experts.epoch_loader import EpochLoader
from janus_moe.messages import (
    DropEpoch,
    EpochFailed,
    EpochPrepared,
    FromWorker,
    PrepareEpoch,
    Stop,
    ToWorker,
)
from janus_moe.model.checkpoint import Checkpoint
from janus_moe.model.config import read_spec
from janus_moe.model.expert_block import ExpertModel
from janus_moe.model.piecewise import Piece
from janus_moe.policy.placement import Placement
from janus_moe.spec import InstanceId
from janus_moe.transport import Ticket, Work

ID = InstanceId(pool="expert", number=0)

FIRST = (((0, 1), (2, 3)),) * 3
SECOND = (((0, 2), (1, 3)),) * 3
THIRD = (((3, 2), (1, 0)),) * 3

Slots = tuple[tuple[tuple[int, ...], ...], ...]


class Bench:
    """Expert instance 0 of two, with one spare slot, and its loader in a thread."""

    def __init__(
        self, folder: Path, bytes_per_step: int, load_piece: Callable[[Piece], None] = Piece.load
    ) -> None:
        spec = read_spec(folder, "float32")
        checkpoint = Checkpoint.open(folder)
        model = ExpertModel.load(
            spec, checkpoint, [layer[0] for layer in FIRST], "cpu", spare_slots=1
        )
        placement = Placement(epoch=0, num_experts=4, slots=FIRST)
        self.instance = expert_instance(0, model, placement)
        self.reports: queue.SimpleQueue[FromWorker] = queue.SimpleQueue()
        self.inbox: queue.SimpleQueue[ToWorker] = queue.SimpleQueue()
        loader = EpochLoader(
            self.instance, checkpoint, bytes_per_step, self.reports.put, load_piece
        )
        self.thread = threading.Thread(target=loader.serve, args=(self.inbox,))
        self.thread.start()

    def prepare(self, epoch: int, placement: Slots = SECOND) -> None:
        self.inbox.put(PrepareEpoch(instance=ID, epoch=epoch, placement=placement))

    def serve(self, epoch: int) -> torch.Tensor:
        hidden = torch.linspace(-1, 1, 3 * 40).reshape(3, 40)
        work = Work(Ticket(epoch, 0, 0), hidden, (3,))
        return self.instance.compute(work).partial

    def stop(self) -> None:
        self.inbox.put(Stop())
        self.thread.join(10)
        assert not self.thread.is_alive()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(
        tmp_path_factory.mktemp("four") / "model", "qwen3_moe", seed=1, num_experts=4
    )


def test_a_prepared_epoch_serves_and_an_unknown_one_is_an_error(folder: Path) -> None:
    bench = Bench(folder, 2**20)
    bench.prepare(1)
    assert bench.reports.get(timeout=10) == EpochPrepared(instance=ID, epoch=1)
    with pytest.raises(ExchangeError, match="serves epoch 0 and was not prepared for epoch 2"):
        bench.serve(2)
    bench.serve(0)
    bench.serve(1)
    assert bench.instance.epochs.current.number == 1
    with pytest.raises(ExchangeError, match="serves epoch 1 and was not prepared for epoch 0"):
        bench.serve(0)
    bench.stop()


def test_no_more_than_the_budget_is_read_between_two_steps(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pacing, "IDLE_AFTER_S", 60.0)
    budget, read = 3000, list[int]()

    def load_piece(piece: Piece) -> None:
        read.append(piece.num_bytes)
        piece.load()

    bench = Bench(folder, budget, load_piece)
    served = bench.instance
    bench.prepare(1)
    between: list[int] = []
    while bench.reports.empty():
        before = sum(read)
        served.stepped.set()
        time.sleep(0.002)
        between.append(sum(read) - before)
        assert len(between) < 5000
    bench.stop()
    assert max(read) <= budget
    expert_bytes = read_spec(folder, "float32").expert_bytes
    assert sum(read) == 3 * expert_bytes, "one expert in each of three layers"
    # A step may end while a piece is being read, so that two budgets fall between two looks.
    assert max(between) <= 2 * budget and sum(read) > 9 * budget


def test_while_idle_it_does_not_wait_for_steps(folder: Path) -> None:
    bench = Bench(folder, 500)
    start = time.monotonic()
    bench.prepare(1)
    assert isinstance(bench.reports.get(timeout=20), EpochPrepared)
    assert time.monotonic() - start < 10, "some hundred pieces, but only one wait"
    bench.stop()


def test_a_failure_is_reported_and_leaves_the_epoch(folder: Path) -> None:
    def fail(piece: Piece) -> None:
        raise OSError(5, "Input/output error", "/secret/path")

    bench = Bench(folder, 2**20, fail)
    expected = bench.serve(0)
    bench.prepare(1)
    report = bench.reports.get(timeout=10)
    assert isinstance(report, EpochFailed) and (report.instance, report.epoch) == (ID, 1)
    assert "secret" not in report.error
    bench.inbox.put(DropEpoch(instance=ID, epoch=1))
    assert torch.equal(bench.serve(0), expected)
    bench.stop()


def test_a_dropped_epoch_is_not_served_and_can_be_prepared_again(folder: Path) -> None:
    bench = Bench(folder, 2**20)
    bench.prepare(1)
    assert isinstance(bench.reports.get(timeout=10), EpochPrepared)
    bench.inbox.put(DropEpoch(instance=ID, epoch=1))
    bench.prepare(2)
    assert bench.reports.get(timeout=10) == EpochPrepared(instance=ID, epoch=2)
    with pytest.raises(ExchangeError, match="not prepared for epoch 1"):
        bench.serve(1)
    bench.serve(2)
    bench.stop()


def test_an_epoch_without_a_step_is_what_the_next_one_starts_from(folder: Path) -> None:
    """There is one spare slot, so experts 2 and 3 can only come one after the other."""
    skipping, stepping = Bench(folder, 2**20), Bench(folder, 2**20)
    for bench in (skipping, stepping):
        for epoch, placement in ((1, SECOND), (2, THIRD)):
            bench.prepare(epoch, placement)
            assert bench.reports.get(timeout=10) == EpochPrepared(instance=ID, epoch=epoch)
            if bench is stepping:
                bench.serve(epoch)
        bench.prepare(3, FIRST)
        assert isinstance(bench.reports.get(timeout=10), EpochFailed), "two at once are too many"
        bench.inbox.put(DropEpoch(instance=ID, epoch=3))
    assert torch.equal(skipping.serve(2), stepping.serve(2))
    assert skipping.instance.epochs.current.number == 2
    for bench in (skipping, stepping):
        bench.prepare(4, SECOND)
        assert bench.reports.get(timeout=10) == EpochPrepared(instance=ID, epoch=4)
        bench.stop()
    with pytest.raises(ExchangeError, match="serves epoch 2 and was not prepared for epoch 1"):
        skipping.serve(1)


def test_another_order_ends_the_loading(folder: Path) -> None:
    started = threading.Event()

    def slow(piece: Piece) -> None:
        started.set()
        time.sleep(0.02)

    bench = Bench(folder, 400, slow)
    bench.prepare(1)
    assert started.wait(10)
    bench.inbox.put(DropEpoch(instance=ID, epoch=1))
    start = time.monotonic()
    bench.stop()
    assert time.monotonic() - start < 2
    assert bench.reports.empty(), "neither prepared nor failed"

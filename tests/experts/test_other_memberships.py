"""Claims: an expert instance takes the first placement of another membership, whatever its size,
serves right sums before, while and after it does, gives the memory back, and ends with the bits it
started with."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from tests.checkpoints import make_checkpoint
from tests.experts.build import expert_instance

from janus_moe.errors import CheckpointError, ConflictError, ExchangeError
from janus_moe.experts import pacing
from janus_moe.experts.epoch_loader import EpochLoader
from janus_moe.experts.instance import ExpertInstance
from janus_moe.experts.pacing import PaceName
from janus_moe.experts.routing_observer import RoutingObserver
from janus_moe.messages import EpochFailed, EpochPrepared, FromWorker, PrepareEpoch, Stop, ToWorker
from janus_moe.model.checkpoint import Checkpoint
from janus_moe.model.config import read_spec
from janus_moe.model.expert_block import ExpertModel
from janus_moe.model.piecewise import Piece
from janus_moe.policy.placement import Placement, adapt_placement, initial_placement
from janus_moe.spec import InstanceId, Membership, PoolShape
from janus_moe.transport import Ticket, WaitRule, Work
from janus_moe.transport.loopback import LoopbackExchange

EXPERTS, LAYERS = 12, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("twelve") / "model"
    return make_checkpoint(folder, "qwen3_moe", seed=4, num_experts=EXPERTS)


def placement_of(num_instances: int, epoch: int, redundant: int = 0) -> Placement:
    return initial_placement(LAYERS, EXPERTS, num_instances, redundant, epoch=epoch)


class Member:
    """One expert instance with its loader."""

    def __init__(
        self,
        folder: Path,
        rank: int,
        placement: Placement,
        load_piece: Callable[[Piece], None] = Piece.load,
    ) -> None:
        checkpoint = Checkpoint.open(folder)
        slots = [layer[rank] for layer in placement.slots]
        self.model = ExpertModel.load(read_spec(folder, "float32"), checkpoint, slots, "cpu")
        self.instance = expert_instance(rank, self.model, placement)
        self.reports: queue.SimpleQueue[FromWorker] = queue.SimpleQueue()
        self.loader = EpochLoader(self.instance, checkpoint, 4000, self.reports.put, load_piece)

    @property
    def num_slots(self) -> list[int]:
        return [self.model.num_slots(layer) for layer in self.instance.layers]

    def enter(self, placement: Placement, rank: int) -> None:
        """All that a change of membership does to an instance that stays."""
        staged = self.loader.stage(placement, rank, "full")
        self.instance.connect(staged, RoutingObserver(LAYERS, EXPERTS))
        assert self.loader.settle(0, "full")


def rows(layer: int, tokens: int) -> torch.Tensor:
    return torch.randn(tokens, 40, generator=torch.Generator().manual_seed(100 * layer + tokens))


def outputs(instances: Sequence[ExpertInstance], epoch: int) -> list[torch.Tensor]:
    """The pool's sums of every layer for batches of 1, 7 and 50 rows."""
    sums = []
    with torch.inference_mode():
        for layer in range(LAYERS):
            for tokens in (1, 7, 50):
                work = Work(Ticket(epoch, 0, layer), rows(layer, tokens), (tokens,))
                replies = [instance.compute(work) for instance in instances]
                assert len({reply.metadata.routing_digest for reply in replies}) == 1
                sums.append(torch.stack([reply.partial for reply in replies]).sum(dim=0))
    return sums


def ids(count: int) -> list[InstanceId]:
    return [InstanceId(pool="expert", number=number) for number in range(count)]


def instances_of(members: Sequence[Member]) -> list[ExpertInstance]:
    return [member.instance for member in members]


def assert_close(some: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> None:
    assert all(
        torch.allclose(one, other, rtol=1e-5, atol=1e-5)
        for one, other in zip(some, others, strict=True)
    )


def assert_same_bits(some: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> None:
    assert all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


@pytest.mark.parametrize("redundant", [0, 5])
def test_one_grows_to_four_and_two_and_three_and_back_to_one(folder: Path, redundant: int) -> None:
    placement = placement_of(1, 0)
    members = [Member(folder, 0, placement)]
    start = outputs(instances_of(members), 0)
    for generation, count in enumerate((4, 2, 3, 1), start=1):
        before, old_ids = placement.epoch, ids(len(members))
        adapted = adapt_placement(
            placement,
            old_ids,
            ids(count),
            [-(-(EXPERTS + redundant) // count)] * count,
            None,
            "resize",
            redundant_experts=redundant if count > 1 else 0,
            epoch=generation,
        )
        assert isinstance(adapted, Placement)
        placement = adapted
        staying = members[:count]
        served = outputs(instances_of(members), before)
        staged = [
            member.loader.stage(placement, rank, "full") for rank, member in enumerate(staying)
        ]
        assert_same_bits(outputs(instances_of(members), before), served)
        for member, epochs in zip(staying, staged, strict=True):
            member.instance.connect(epochs, RoutingObserver(LAYERS, EXPERTS))
        members = [
            *staying,
            *(Member(folder, rank, placement) for rank in range(len(staying), count)),
        ]
        assert_close(outputs(instances_of(members), generation), start)
        assert all(member.loader.settle(0, "full") for member in members)
        assert_close(outputs(instances_of(members), generation), start)
        for rank, member in enumerate(members):
            assert member.num_slots == [len(layer[rank]) for layer in placement.slots]
    assert_same_bits(outputs(instances_of(members), placement.epoch), start)


def test_the_same_placement_has_the_same_bits_however_it_was_reached(folder: Path) -> None:
    direct = Member(folder, 0, placement_of(3, 9))
    for route in ((1, 3), (4, 3), (3, 1, 2, 3)):
        member = Member(folder, 0, placement_of(route[0], 0))
        for epoch, count in enumerate(route[1:], start=9 - len(route) + 2):
            member.enter(placement_of(count, epoch), 0)
        assert_same_bits(outputs([member.instance], 9), outputs([direct.instance], 9))


def test_the_old_epoch_serves_until_the_new_one_is_adopted_and_not_after(folder: Path) -> None:
    member = Member(folder, 0, placement_of(3, 0))
    start = outputs([member.instance], 0)
    staged = member.loader.stage(placement_of(2, 1), 1, "full")
    assert member.num_slots > [4] * LAYERS
    assert_same_bits(outputs([member.instance], 0), start)
    with pytest.raises(ExchangeError, match="not prepared for epoch 1"):
        outputs([member.instance], 1)
    member.instance.connect(staged, RoutingObserver(LAYERS, EXPERTS))
    outputs([member.instance], 1)
    with pytest.raises(ExchangeError, match="serves epoch 1"):
        outputs([member.instance], 0)


def test_an_instance_has_the_slots_that_it_needs_and_no_more(folder: Path) -> None:
    member = Member(folder, 0, placement_of(4, 0))

    def held() -> int:
        return sum(member.num_slots)

    assert held() == 3 * LAYERS
    member.enter(placement_of(1, 1), 0)
    assert held() == 12 * LAYERS
    staged = member.loader.stage(placement_of(4, 2), 0, "full")
    assert held() == 12 * LAYERS
    member.instance.connect(staged, RoutingObserver(LAYERS, EXPERTS))
    assert member.loader.settle(1, "full")
    assert held() == (3 + 1) * LAYERS


def test_what_is_there_is_not_read_again(folder: Path) -> None:
    read: list[int] = []

    def load_piece(piece: Piece) -> None:
        read.append(piece.num_bytes)
        piece.load()

    member = Member(folder, 0, placement_of(2, 0), load_piece)
    member.loader.stage(placement_of(1, 1), 0, "full")
    first = sum(read)
    assert first == 6 * LAYERS * read_spec(folder, "float32").expert_bytes
    member.loader.unstage(1)
    member.loader.stage(placement_of(1, 2), 0, "full")
    assert sum(read) == first, "what a dropped membership brought is still there"


def test_after_a_failure_only_what_is_missing_is_read(folder: Path) -> None:
    read: list[int] = []

    def fails_once(piece: Piece) -> None:
        if len(read) == 20:
            read.append(0)
            raise CheckpointError("model.safetensors cannot be read: Input/output error")
        read.append(piece.num_bytes)
        piece.load()

    member = Member(folder, 0, placement_of(2, 0), fails_once)
    with pytest.raises(CheckpointError, match="Input/output error"):
        member.loader.stage(placement_of(1, 1), 0, "full")
    member.enter(placement_of(1, 1), 0)
    one = read_spec(folder, "float32").expert_bytes
    assert 6 * LAYERS * one <= sum(read) < (6 * LAYERS + 1) * one, "one expert was begun again"
    assert_same_bits(outputs([member.instance], 1), outputs([whole(folder)], 1))


def test_beside_steps_no_more_is_read_than_between_two_of_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pacing, "IDLE_AFTER_S", 60.0)
    read: list[int] = []

    def load_piece(piece: Piece) -> None:
        read.append(piece.num_bytes)
        piece.load()

    member = Member(folder, 0, placement_of(2, 0), load_piece)
    thread = threading.Thread(target=member.loader.stage, args=(placement_of(1, 1), 0, "steps"))
    thread.start()
    between: list[int] = []
    while thread.is_alive():
        before = sum(read)
        member.instance.stepped.set()
        thread.join(0.002)
        between.append(sum(read) - before)
        assert len(between) < 5000
    # A step may end while a piece is being read, so that two budgets fall between two looks.
    assert max(between) <= 2 * 4000 and sum(read) > 20 * 4000


def test_a_membership_that_was_dropped_is_not_staged_and_the_next_is(folder: Path) -> None:
    member = Member(folder, 0, placement_of(2, 0))
    start = outputs([member.instance], 0)
    member.loader.unstage(1)
    with pytest.raises(ConflictError, match="generation 1 of expert 0 was dropped"):
        member.loader.stage(placement_of(1, 1), 0, "full")
    assert_same_bits(outputs([member.instance], 0), start)
    member.enter(placement_of(1, 2), 0)


def test_dropping_it_ends_the_loading_soon(folder: Path) -> None:
    started, go_on = threading.Event(), threading.Event()

    def slow(piece: Piece) -> None:
        started.set()
        assert go_on.wait(10)
        piece.load()

    member = Member(folder, 0, placement_of(2, 0), slow)
    errors: list[Exception] = []

    def stage() -> None:
        try:
            member.loader.stage(placement_of(1, 1), 0, "full")
        except ConflictError as error:
            errors.append(error)

    thread = threading.Thread(target=stage)
    thread.start()
    assert started.wait(10)
    member.loader.unstage(1)
    go_on.set()
    thread.join(10)
    assert not thread.is_alive() and len(errors) == 1


def test_slots_of_a_staged_membership_are_kept_while_another_is_staged(folder: Path) -> None:
    """After a commit was sent an instance may be asked for the generation after it first."""
    direct = Member(folder, 0, placement_of(2, 1))
    member = Member(folder, 0, placement_of(4, 0))
    staged = member.loader.stage(placement_of(2, 1), 0, "full")
    member.loader.stage(placement_of(2, 2), 1, "full")
    assert not member.loader.settle(0, "full"), "not while another is staged"
    member.instance.connect(staged, RoutingObserver(LAYERS, EXPERTS))
    assert_close(outputs([member.instance], 1), outputs([direct.instance], 1))


def test_a_vanished_checkpoint_is_named_and_loading_works_once_it_is_back(folder: Path) -> None:
    member = Member(folder, 0, placement_of(2, 0))
    start = outputs([member.instance], 0)
    weights, away = folder / "model.safetensors", folder / "away"
    weights.rename(away)
    try:
        for _ in range(2):
            with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
                member.loader.stage(placement_of(1, 1), 0, "full")
        assert_same_bits(outputs([member.instance], 0), start)
    finally:
        weights.write_bytes(away.read_bytes())  # another file with the same content
        away.unlink()
    member.enter(placement_of(1, 1), 0)
    assert_close(outputs([member.instance], 1), outputs([whole(folder)], 1))


def whole(folder: Path) -> ExpertInstance:
    return Member(folder, 0, placement_of(1, 1)).instance


def test_another_membership_goes_before_an_epoch_of_this_one(folder: Path) -> None:
    started, go_on = threading.Event(), threading.Event()

    def slow(piece: Piece) -> None:
        started.set()
        assert go_on.wait(10)
        piece.load()

    first = placement_of(2, 0)
    member = Member(folder, 0, first, slow)
    assert member.loader.settle(1, "full")
    inbox: queue.SimpleQueue[ToWorker] = queue.SimpleQueue()
    serving = threading.Thread(target=member.loader.serve, args=(inbox,))
    serving.start()
    swapped = tuple(
        (tuple(sorted((*layer[0][1:], layer[1][0]))), tuple(sorted((*layer[1][1:], layer[0][0]))))
        for layer in first.slots
    )
    order = PrepareEpoch(instance=member.instance.id, epoch=1, placement=swapped)
    inbox.put(order)
    assert started.wait(10)
    threading.Timer(0.05, go_on.set).start()
    staged = member.loader.stage(placement_of(1, 2), 0, "full")
    report = member.reports.get(timeout=10)
    assert isinstance(report, EpochFailed) and "another membership" in report.error
    member.instance.connect(staged, RoutingObserver(LAYERS, EXPERTS))
    assert_close(outputs([member.instance], 2), outputs([whole(folder)], 1))
    inbox.put(Stop())
    serving.join(10)


def test_epochs_go_on_in_another_membership(folder: Path) -> None:
    member = Member(folder, 0, placement_of(1, 0))
    second = placement_of(2, 1)
    staged = member.loader.stage(second, 1, "full")
    member.instance.connect(staged, RoutingObserver(LAYERS, EXPERTS))
    assert member.loader.settle(1, "full")
    inbox: queue.SimpleQueue[ToWorker] = queue.SimpleQueue()
    swapped = tuple(
        (tuple(sorted((*layer[0][1:], layer[1][0]))), tuple(sorted((*layer[1][1:], layer[0][0]))))
        for layer in second.slots
    )
    inbox.put(PrepareEpoch(instance=member.instance.id, epoch=2, placement=swapped))
    serving = threading.Thread(target=member.loader.serve, args=(inbox,))
    serving.start()
    assert isinstance(member.reports.get(timeout=10), EpochPrepared)
    inbox.put(Stop())
    serving.join(10)
    third = Placement(epoch=2, num_experts=EXPERTS, slots=swapped)
    other = Member(folder, 1, third)
    assert_close(outputs([member.instance], 2), outputs([other.instance], 2))


def test_steps_go_on_while_slots_are_added_and_put_in_order(folder: Path) -> None:
    """One thread serves steps all the time, another stages and drops, and moves memory."""
    two = placement_of(2, 0)
    mixed = tuple((layer[0][::-1], layer[1]) for layer in two.slots)
    first = Placement(epoch=0, num_experts=EXPERTS, slots=mixed)
    members = [Member(folder, rank, first) for rank in range(2)]
    expected = outputs(instances_of(members), 0)[1::3]
    exchange = LoopbackExchange(Membership.first(PoolShape(attention=1, expert=2)))
    for rank, member in enumerate(members):
        exchange.serve(rank, member.instance.serve_once)
    port = exchange.attention_port(0, WaitRule(timeout_s=10))
    done, wrong, steps = threading.Event(), list[int](), 0

    def serve() -> None:
        nonlocal steps
        with torch.inference_mode():
            while not done.is_set():
                port.begin_step(7)
                for layer in range(LAYERS):
                    sums = port.combine(port.dispatch(layer, rows(layer, 7))).hidden
                    if not torch.allclose(sums, expected[layer], rtol=1e-5, atol=1e-5):
                        wrong.append(layer)
                steps += 1

    serving = threading.Thread(target=serve)
    serving.start()
    sizes = set()
    try:
        for generation in range(1, 21):
            member = members[generation % 2]
            pace: PaceName = "full" if generation % 4 < 2 else "steps"
            member.loader.stage(placement_of(1, generation), 0, pace)
            sizes.add(member.num_slots[0])
            member.loader.unstage(generation)
            assert member.loader.settle(generation % 4, pace)
            sizes.add(member.num_slots[0])
    finally:
        done.set()
        serving.join(10)
    assert sizes == {6, 7, 8, 9, 12} and steps > 20 and not wrong

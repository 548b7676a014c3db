"""Claims about scheduling on a device: the slots and notes of the host, and nothing waits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from tests.experts.build import next_tables
from torch import Tensor

from janus_moe.errors import ExchangeError, RoutingDivergence
from janus_moe.experts import scheduling
from janus_moe.experts.epoch import first_tables, make_epoch
from janus_moe.experts.scheduling import (
    DeviceDigest,
    DeviceScheduler,
    HostScheduler,
    Rule,
    Schedulers,
    physical_tables,
)
from janus_moe.experts.step_routing import StepRouting
from janus_moe.kernels.activation_schedule import DevicePolicy, PolicyActivationSchedule
from janus_moe.policy.activation import LayerCost
from janus_moe.policy.placement import Placement, place_experts
from janus_moe.transport import ReplyMetadata, Ticket, read_metadata

EXPERTS, INSTANCES, SPARE = 24, 4, 3
TICKET = Ticket(epoch=0, step=7, layer=2)


def random_ids(rng: np.random.Generator, tokens: int, top_k: int = 4) -> Tensor:
    """Some rows are padding."""
    ids = rng.random((tokens, EXPERTS)).argsort(axis=1)[:, :top_k].astype(np.int32)
    ids[rng.random(tokens) < 0.2] = -1
    return torch.from_numpy(ids)


def placements() -> list[Placement]:
    """Three epochs; each has other replicas on other instances."""
    load = np.random.default_rng(3).random((3, 2, EXPERTS))
    capacity = [9, 8, 9, 10]
    return [place_experts("janus", rows, capacity, epoch=epoch) for epoch, rows in enumerate(load)]


def as_on_the_host(metadata: ReplyMetadata) -> ReplyMetadata:
    return read_metadata([TICKET], [(metadata,)])[0][0]


@pytest.mark.parametrize("policy", ["exact", "aebs"])
@pytest.mark.parametrize("instance", range(INSTANCES))
def test_a_device_schedules_as_the_host_does_in_every_epoch(
    policy: DevicePolicy, instance: int
) -> None:
    """Physical slots are those that moving experts leaves: in any order, with gaps."""
    rng, digest = np.random.default_rng(instance), DeviceDigest("cpu")
    first, *later = placements()
    tables = first_tables(first, instance)
    moved = 0
    for placement in (first, *later):
        own = [layer[instance] for layer in placement.slots]
        tables, arrivals = next_tables(tables, own, EXPERTS + SPARE)
        moved += len(arrivals)
        hosts = make_epoch(placement, tables, Schedulers(instance, policy)).schedulers
        for layer, host in enumerate(hosts):
            replicas = physical_tables(placement, layer, instance, tables[layer])
            device = DeviceScheduler(
                PolicyActivationSchedule(replicas, policy), instance, placement.epoch, digest
            )
            for tokens in (0, 1, 5, 40):
                ids = random_ids(rng, tokens)
                one, other = host.schedule(ids), device.schedule(ids)
                assert torch.equal(one.slot_ids, other.slot_ids)
                assert other.slot_ids.dtype == torch.int32
                metadata = other.metadata
                assert (metadata.routing_digest, metadata.activated) == (0, 0), (
                    "nobody has looked yet"
                )
                assert as_on_the_host(metadata).activated == one.metadata.activated
    assert moved > 0


def test_digests_tell_ids_orders_and_epochs_apart() -> None:
    rng = np.random.default_rng(0)
    ids = random_ids(rng, 16)
    digest = DeviceDigest("cpu")
    seen = {int(digest(ids, epoch)) for epoch in range(3)}
    for token in range(16):
        for choice in range(4):
            changed = ids.clone()
            changed[token, choice] += 1
            seen.add(int(digest(changed, 0)))
    seen.add(int(digest(ids.flip(0), 0)))
    seen.add(int(digest(ids[:-1], 0)))
    assert len(seen) == 3 + 16 * 4 + 2
    assert torch.equal(digest(ids, 1), DeviceDigest("cpu")(ids.clone(), 1))
    many = torch.zeros(2**16 + 1, 1, dtype=torch.int32)
    assert int(digest(many, 0)) != int(digest(many[:-1], 0))
    assert torch.equal(digest(ids, 1), DeviceDigest("cpu")(ids, 1)), "more factors, the same ones"


def note_of(*facts: int) -> ReplyMetadata:
    return ReplyMetadata(0, 0, 5, torch.tensor(facts))


def test_a_step_is_read_at_once_and_divergence_is_found() -> None:
    tickets = [Ticket(0, 7, layer) for layer in (2, 4)]
    replies = [(note_of(11, 3, 0), note_of(11, 4, 0)), (note_of(12, 1, 0), note_of(12, 2, 0))]
    assert read_metadata(tickets, replies) == [
        (ReplyMetadata(11, 3, 5), ReplyMetadata(11, 4, 5)),
        (ReplyMetadata(12, 1, 5), ReplyMetadata(12, 2, 5)),
    ]
    replies[1] = (note_of(12, 1, 0), note_of(13, 2, 0))
    with pytest.raises(RoutingDivergence, match=r"step 7, layer 4 .*expert 0: 12, expert 1: 13"):
        read_metadata(tickets, replies)
    replies[1] = (note_of(12, 1, 1), note_of(12, 2, 1))
    with pytest.raises(ExchangeError, match="out of range in step 7, layer 4"):
        read_metadata(tickets, replies)
    on_the_host = [(ReplyMetadata(1, 2, 3),)]
    assert read_metadata([TICKET], on_the_host) == on_the_host


@pytest.mark.parametrize(
    "rule", ["exact", "aebs", "metro", "random", "token-split", LayerCost(expert_ns=9, token_ns=1)]
)
def test_a_gpu_schedules_what_its_kernel_can_and_the_host_the_rest(
    rule: Rule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        scheduling, "activation_schedule", lambda tables, *_: PolicyActivationSchedule(tables)
    )
    monkeypatch.setattr(scheduling, "DeviceDigest", lambda device: DeviceDigest("cpu"))
    placement = placements()[0]
    [table, _] = first_tables(placement, 1)
    for device in ("cpu", "cuda"):
        made = Schedulers(1, rule, device).make(placement, 0, table)
        on_device = device == "cuda" and rule in ("exact", "aebs")
        assert isinstance(made, DeviceScheduler if on_device else HostScheduler)


def test_routing_comes_a_step_later_and_whole() -> None:
    rng, routing = np.random.default_rng(5), StepRouting()
    before: list[Tensor] = []
    for tokens in (3, 8, 1):
        now = [random_ids(rng, tokens + layer) for layer in range(2)]  # micro-batches differ
        for layer, ids in enumerate(now):
            routing.add(layer, ids)
        batches = routing.end_of_step()
        assert [batch.layer for batch in batches] == list(range(len(before)))
        for batch, ids in zip(batches, before, strict=True):
            assert np.array_equal(batch.expert_ids, ids.numpy())
        before = now
    assert len(routing.end_of_step()) == 2 and not routing.end_of_step()


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture
def waiting_is_allowed_again() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


@needs_gpu
@pytest.mark.usefixtures("waiting_is_allowed_again")
def test_nothing_waits_for_a_gpu_until_the_step_is_read() -> None:
    rng, routing = np.random.default_rng(6), StepRouting()
    placement = placements()[0]
    instances = range(placement.num_instances)
    tables = [first_tables(placement, i) for i in instances]
    gpu = [make_epoch(placement, tables[i], Schedulers(i, "exact", "cuda")) for i in instances]
    host = [make_epoch(placement, tables[i], Schedulers(i, "exact")) for i in instances]
    steps = [[random_ids(rng, tokens, 8) for _ in range(2)] for tokens in (1, 16, 200)]
    for epoch in gpu:
        for layer, ids in enumerate(steps[0]):
            epoch.schedulers[layer].warm_up()
            epoch.schedulers[layer].schedule(ids.cuda())
    for step in steps:
        on_gpu = [ids.cuda() for ids in step]
        torch.cuda.set_sync_debug_mode("error")
        answers = [
            [e.schedulers[layer].schedule(ids) for e in gpu] for layer, ids in enumerate(on_gpu)
        ]
        for layer, ids in enumerate(on_gpu):
            routing.add(layer, ids)
        routing.end_of_step()
        torch.cuda.set_sync_debug_mode("default")
        replies = read_metadata(
            [Ticket(0, 0, layer) for layer in range(2)],
            [tuple(answer.metadata for answer in row) for row in answers],
        )
        for layer, ids in enumerate(step):
            expected = [e.schedulers[layer].schedule(ids) for e in host]
            for i in instances:
                assert torch.equal(answers[layer][i].slot_ids.cpu(), expected[i].slot_ids)
                assert replies[layer][i].activated == expected[i].metadata.activated
    for batch, ids in zip(routing.end_of_step(), steps[-1], strict=True):
        assert np.array_equal(batch.expert_ids, ids.numpy())

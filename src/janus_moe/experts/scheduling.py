"""From routed expert ids to slots of this instance: one interface, on the host and on a GPU.

`HostScheduler` is the reference. `DeviceScheduler` gives the same slots without waiting for the
device: what the reply's metadata needs stays there until the attention instance reads it for a
whole step (`transport.lockstep.reply_metadata`). Only `Schedulers` chooses between them.
"""

from __future__ import annotations

import time
import zlib
from typing import NamedTuple, Protocol, TypeGuard, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from janus_moe.kernels.activation_schedule import (
    ActivationSchedule,
    DevicePolicy,
    ReplicaTables,
    activation_schedule,
)
from janus_moe.policy import splitmix64
from janus_moe.policy.activation import LayerCost, Policy, Scheduler, TokenAwareScheduler
from janus_moe.policy.placement import Placement
from janus_moe.transport import ReplyMetadata

Rule = Policy | LayerCost
"""How replicas are chosen: by a policy, or token-aware with these costs."""
Table = NDArray[np.int32]
"""[experts] int32, the expert's physical slot on this instance or -1."""

FIRST_FACTORS = 1 << 16


class Scheduled(NamedTuple):
    """Who computes what, as one instance sees it.

    slot_ids: [tokens, top_k] int32 on the device of the ids, the physical slot that computes each
        choice here; -1 for other instances and padding.
    metadata: what travels with the reply.
    """

    slot_ids: Tensor
    metadata: ReplyMetadata


class LayerScheduler(Protocol):
    """One layer of one epoch on one instance; one thread at a time."""

    def schedule(self, expert_ids: Tensor) -> Scheduled:
        """The slots of one batch.

        expert_ids: [tokens, top_k] int32 logical ids, contiguous; -1 means padding.
        """
        ...

    def warm_up(self) -> None:
        """Compiles what compiles on first use."""
        ...


class HostScheduler:
    """A scheduler of the policy package, on the host.

    Ids on another device are copied to the host and slots back, which waits for it.

    scheduler: of one layer, with physical slots as labels.
    instance: rank of the instance whose experts are counted.
    epoch: enters the digest.
    """

    def __init__(
        self, scheduler: Scheduler | TokenAwareScheduler, instance: int, epoch: int
    ) -> None:
        self._scheduler = scheduler
        self._instance = instance
        self._epoch = epoch

    def schedule(self, expert_ids: Tensor) -> Scheduled:
        ids: NDArray[np.int32] = expert_ids.cpu().numpy()
        start = time.perf_counter_ns()
        slot_ids, activated, _ = self._scheduler.rewrite(ids)
        scheduler_ns = time.perf_counter_ns() - start
        digest = zlib.crc32(ids.data, self._epoch)
        metadata = ReplyMetadata(digest, int(activated[self._instance]), scheduler_ns)
        return Scheduled(torch.from_numpy(slot_ids).to(expert_ids.device), metadata)

    def warm_up(self) -> None:
        """Numba compiles for all sizes at once; the first batch does it."""


class DeviceDigest:
    """A 64-bit digest of expert ids where they are: their sum, each times a random factor of its
    place, modulo 2^64 (multilinear hashing; Lemire and Kaser, arXiv 1202.4961).

    Ids that differ give the same digest with a chance of about 2^-54. It is not the host's digest;
    all instances of a service use the same.
    """

    def __init__(self, device: torch.device | str) -> None:
        self._factors = torch.empty(0, dtype=torch.int64, device=device)

    def __call__(self, expert_ids: Tensor, epoch: int) -> Tensor:
        """[1] int64 on the device."""
        count = expert_ids.numel()
        if count > self._factors.numel():  # rarely: a copy from the host, which may wait
            size = max(FIRST_FACTORS, 1 << (count - 1).bit_length())
            self._factors = torch.from_numpy(_factors(size)).to(self._factors.device)
        products = (expert_ids.reshape(-1) + 2) * self._factors[:count]
        return products.sum(dim=0, keepdim=True) + epoch


class DeviceScheduler:
    """An activation schedule whose answers stay on the device.

    schedule: of one layer, on the device of the ids.
    instance: rank of the instance whose slots are given.
    epoch: enters the digest.
    digest: of expert ids; shared by the layers.
    """

    def __init__(
        self, schedule: ActivationSchedule, instance: int, epoch: int, digest: DeviceDigest
    ) -> None:
        self._schedule = schedule
        self._instance = instance
        self._epoch = epoch
        self._digest = digest

    def schedule(self, expert_ids: Tensor) -> Scheduled:
        """The note's scheduler_ns is the host's time for launching."""
        start = time.perf_counter_ns()
        answer = self._schedule.schedule(expert_ids, self._instance)
        scheduler_ns = time.perf_counter_ns() - start
        own = answer.activated[self._instance : self._instance + 1]
        on_device = torch.cat((self._digest(expert_ids, self._epoch), own, answer.invalid))
        return Scheduled(answer.slot_ids, ReplyMetadata(0, 0, scheduler_ns, on_device))

    def warm_up(self) -> None:
        self._schedule.warm_up()


class Schedulers:
    """Makes the schedulers of one expert instance.

    instance: its rank in the placements.
    rule: how replicas are chosen.
    device: where the expert ids are.
    """

    def __init__(self, instance: int, rule: Rule, device: torch.device | str = "cpu") -> None:
        self._instance = instance
        self._rule = rule
        self._device = torch.device(device)
        self._digest = DeviceDigest(self._device)

    def at_rank(self, rank: int) -> Schedulers:
        """Those of the same instance in another membership.

        rank: of the instance there.
        """
        return Schedulers(rank, self._rule, self._device)

    def make(self, placement: Placement, layer: int, slots: Table) -> LayerScheduler:
        """slots: where this instance has its experts, which the placement does not say."""
        if self._device.type == "cuda" and runs_on_device(self._rule):
            tables = physical_tables(placement, layer, self._instance, slots)
            schedule = activation_schedule(tables, self._rule, self._device)
            return DeviceScheduler(schedule, self._instance, placement.epoch, self._digest)
        layout = placement.layer_layout(layer)
        labels = np.where(layout.holders == self._instance, slots[:, None], np.int32(-1))
        scheduler = (
            TokenAwareScheduler(layout, self._rule, labels=labels)
            if isinstance(self._rule, LayerCost)
            else Scheduler(layout, self._rule, labels=labels)
        )
        return HostScheduler(scheduler, self._instance, placement.epoch)


def runs_on_device(rule: object) -> TypeGuard[DevicePolicy]:
    """Whether a GPU can schedule by this policy or `Rule`."""
    return rule in get_args(DevicePolicy)


def physical_tables(placement: Placement, layer: int, instance: int, slots: Table) -> ReplicaTables:
    """The layer's replicas, with the physical slots of `instance`; other columns do not matter."""
    tables = ReplicaTables.from_slots(placement.slots[layer], placement.num_experts)
    tables.slot_of[:, instance] = slots
    return tables


def _factors(count: int) -> NDArray[np.int64]:
    """[count] int64, the same in every process."""
    return np.asarray(splitmix64.sequence(count).view(np.int64))

"""The exchange among processes of one host: one region and one control block for all instances.

The attention instance of rank 0 creates the region and one wake-up per instance, and hands their
descriptors to the others (`handshake`), so any living process can open an exchange, also beside
another one. The kernel frees everything with the last process, however it ends. This module does
not know who started whom.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import time
from collections.abc import Sequence

from janus_moe.errors import ConfigError, ExchangeClosed, ExchangeError
from janus_moe.spec import InstanceId
from janus_moe.transport.base import CONNECT_TIMEOUT_S, ExchangeLayout, WaitRule, global_rank
from janus_moe.transport.host_memory.handshake import Advertisement, Listener
from janus_moe.transport.host_memory.region import AttentionRows, ExpertRows, RegionLayout
from janus_moe.transport.lockstep.batches import BatchSequence
from janus_moe.transport.lockstep.control_block import ControlBlock, control_block_bytes
from janus_moe.transport.lockstep.participant import Wiring
from janus_moe.transport.lockstep.ports import LockstepAttention, LockstepExpert
from janus_moe.transport.lockstep.steps import StepSequence
from janus_moe.transport.lockstep.wakeup import EventFdWakeup
from janus_moe.transport.network.rendezvous import Rendezvous

_SEALS = getattr(fcntl, "F_SEAL_SHRINK", 0) | getattr(fcntl, "F_SEAL_GROW", 0)


class SharedMemoryExchange:
    """One process's hold on the exchange; an `Exchange`.

    instances: those of this process.
    region: descriptor of the region; closed when it is mapped.
    wakeups: [instances] of all members by rank, attention first; owned.
    """

    def __init__(
        self,
        layout: ExchangeLayout,
        instances: Sequence[InstanceId],
        region: int,
        wakeups: Sequence[EventFdWakeup],
    ) -> None:
        self.layout = layout
        self._region_layout = RegionLayout(layout)
        self._instances = frozenset(instances)
        self._wakeups = wakeups
        self._memory = _map(region, self._region_layout.total_bytes)
        self._open = True
        num_attention = layout.shape.attention
        self._wiring = Wiring(
            attention_wakeups=wakeups[:num_attention],
            expert_wakeups=wakeups[num_attention:],
            start_experts=self._notify_experts,
            why_closed=lambda: ExchangeClosed("the exchange was shut down"),
            epoch=layout.membership.placement_epoch,
        )

    def attention_port(self, rank: int, rule: WaitRule) -> LockstepAttention:
        member = self._own(self.layout.membership.attention[rank])
        steps = StepSequence(member, self._control_block(), self._wiring, rule)
        return LockstepAttention(steps, AttentionRows(self._region_layout, self._memory, member))

    def expert_port(self, rank: int, rule: WaitRule) -> LockstepExpert:
        member = self._own(self.layout.membership.expert[rank])
        batches = BatchSequence(member, self._control_block(), self._wiring, rule)
        return LockstepExpert(batches, ExpertRows(self._region_layout, self._memory, rank))

    def shutdown(self) -> None:
        if not self._open:
            return
        self._control_block().close()
        for wakeup in self._wakeups:
            wakeup.notify()

    def close(self) -> None:
        """Gives back what this process has of it; its ports must not be in use any more.

        The mapping goes with the last port or tensor that looks into it.
        """
        if self._open:
            self._open = False
            self._memory = memoryview(b"")
            for wakeup in self._wakeups:
                wakeup.close()

    def _own(self, member: InstanceId) -> InstanceId:
        if member not in self._instances:
            here = ", ".join(map(str, sorted(self._instances, key=str)))
            raise ConfigError(f"this is the exchange's end of {here}, not of {member}")
        return member

    def _control_block(self) -> ControlBlock:
        membership = self.layout.membership
        size = control_block_bytes(membership.shape)
        return ControlBlock(membership, self._memory[:size].cast("q"))

    def _notify_experts(self, key: int) -> None:
        for wakeup in self._wiring.expert_wakeups:
            wakeup.notify()


def open_shared_memory(
    layout: ExchangeLayout,
    instances: Sequence[InstanceId],
    rendezvous: Rendezvous,
    timeout_s: float = CONNECT_TIMEOUT_S,
) -> SharedMemoryExchange:
    """Opens this process's end; blocks until all members have the region.

    Raises ExchangeError naming those that are missing after `timeout_s`, or that cannot share
    memory with this process.

    instances: members that live in this process.
    """
    membership = layout.membership
    own = sorted(global_rank(membership, instance) for instance in instances)
    others = [rank for rank in range(len(membership.instances)) if rank not in own]
    deadline = time.monotonic() + timeout_s
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(Listener(rank)) for rank in own]
        for listener in listeners:
            if not listener.advertisement.place:
                raise ExchangeError(
                    "shared memory among processes needs Linux (memfd, eventfd, SO_PEERCRED); "
                    "use --transport loopback or gloo"
                )
            if others:
                key = _key(membership.instances[listener.rank])
                listener.advertisement.publish(key, rendezvous)
        if own[0] == 0:
            descriptors = _create(layout)
            try:
                _hand_out(listeners[0], layout, others, descriptors, rendezvous, deadline)
            except BaseException:
                _close(descriptors)
                raise
        else:
            descriptors, *same = (_fetch(one, layout, rendezvous, deadline) for one in listeners)
            for other in same:  # of this process's other instances
                _close(other)
    region, *wakeups = descriptors
    return SharedMemoryExchange(layout, instances, region, [EventFdWakeup(fd) for fd in wakeups])


def _hand_out(
    listener: Listener,
    layout: ExchangeLayout,
    others: Sequence[int],
    descriptors: Sequence[int],
    rendezvous: Rendezvous,
    deadline: float,
) -> None:
    """The creator's part of the opening."""
    members = layout.membership.instances
    peers = {
        rank: _advertisement_of(members[rank], listener, members[0], rendezvous, deadline)
        for rank in others
    }
    try:
        listener.accept(peers, descriptors, 0, deadline)
    except (OSError, TimeoutError) as error:
        missing = ", ".join(str(members[rank]) for rank in others if rank not in listener.met)
        raise ExchangeError(
            f"{missing} did not take the shared memory of {members[0]}: {error}"
        ) from error


def _fetch(
    listener: Listener, layout: ExchangeLayout, rendezvous: Rendezvous, deadline: float
) -> Sequence[int]:
    """Another member's part of the opening; returns the descriptors."""
    members = layout.membership.instances
    creator, own = members[0], members[listener.rank]
    advertisement = _advertisement_of(creator, listener, own, rendezvous, deadline)
    try:
        listener.connect(0, advertisement, (), deadline)
        listener.receive_answers(1 + len(members), deadline)
    except (OSError, TimeoutError) as error:
        raise ExchangeError(f"{own} did not get the shared memory of {creator}: {error}") from error
    met = listener.take()[0]
    met.connection.close()
    return met.descriptors


def _advertisement_of(
    peer: InstanceId,
    listener: Listener,
    own: InstanceId,
    rendezvous: Rendezvous,
    deadline: float,
) -> Advertisement:
    left_s = max(0.0, deadline - time.monotonic())
    advertisement = Advertisement.read(_key(peer), rendezvous, left_s)
    if not advertisement.shares_memory_with(listener.advertisement):
        raise ExchangeError(
            f"{own} cannot share memory with {peer} (another system, network namespace or user); "
            "use --transport gloo"
        )
    return advertisement


def _key(instance: InstanceId) -> str:
    return f"{instance}/shared memory"


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _create(layout: ExchangeLayout) -> Sequence[int]:
    """The region, then a wake-up for each member by rank."""
    region = os.memfd_create("janus-exchange", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(region, RegionLayout(layout).total_bytes)
        # A process that maps memory which another one takes away again would be killed.
        fcntl.fcntl(region, fcntl.F_ADD_SEALS, _SEALS)
        return [region, *(EventFdWakeup.create().descriptor for _ in layout.membership.instances)]
    except OSError:
        os.close(region)
        raise


def _map(region: int, size: int) -> memoryview:
    """Maps the region and closes its descriptor."""
    try:
        found = os.fstat(region).st_size
        if found != size:
            raise ConfigError(
                f"the shared region has {found} bytes, its layout {size}; all workers must be of "
                "the same version"
            )
        if fcntl.fcntl(region, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
            raise ConfigError("the shared region is not sealed, so it could shrink")
        return memoryview(mmap.mmap(region, size))
    finally:
        os.close(region)

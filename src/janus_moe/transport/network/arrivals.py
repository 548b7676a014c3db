"""Arrived messages: a thread that also waits for other things is notified of them.

What messages hold, and when they are expected, is not known here.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextlib import suppress

from janus_moe.transport.network.channel import ChannelAborted, Pending
from janus_moe.transport.network.receive_slots import HostReceive, ReceiveSlot


class MessageArrivals:
    """Notifies when a message is there.

    Host peers notify by themselves. Else there is one thread per slot that is ever watched, as
    nothing but a thread can wait for a message of a channel.
    """

    def __init__(self, notify: Callable[[], None]) -> None:
        self._notify = notify
        self._watches: dict[int, _Watch] = {}

    def watch(self, slot: ReceiveSlot) -> None:
        """Waits for the receive that is posted there, unless it is waited for already."""
        if isinstance(slot, HostReceive):
            return
        watch = self._watches.get(id(slot))
        if watch is None:
            watch = self._watches[id(slot)] = _Watch(self._notify)
        assert slot.pending is not None
        watch.begin(slot.pending)

    def has(self, slot: ReceiveSlot) -> bool:
        """Whether the message is there that was watched for."""
        if isinstance(slot, HostReceive):
            return slot.pending is not None and slot.pending.arrived()
        return self._watches[id(slot)].arrived is slot.pending

    def stop(self) -> None:
        for watch in self._watches.values():
            watch.begin(None)


class _Watch:
    def __init__(self, notify: Callable[[], None]) -> None:
        self.arrived: Pending | None = None
        self._begun: Pending | None = None
        self._notify = notify
        self._orders: queue.SimpleQueue[Pending | None] = queue.SimpleQueue()
        threading.Thread(target=self._live, name="arrivals", daemon=True).start()

    def begin(self, pending: Pending | None) -> None:
        if pending is None or pending is not self._begun:
            self._begun = pending
            self._orders.put(pending)

    def _live(self) -> None:
        while (pending := self._orders.get()) is not None:
            with suppress(
                ConnectionError, ChannelAborted
            ):  # the endpoint learns it from the broadcast
                pending.wait()
                self.arrived = pending
            self._notify()

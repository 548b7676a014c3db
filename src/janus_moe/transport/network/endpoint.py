"""One instance's end of an exchange among processes: its control block, broadcast and executor.

Whatever ends it (a deadline, a peer that is gone, a shutdown here or elsewhere) ends all waits of
the instance with one error, and tells all peers why. One thread watches data waits, which a wake-up
cannot end: when nothing in the whole exchange moves for `timeout_s`, it ends them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from janus_moe.errors import ExchangeClosed, ExchangeError, PeerLost
from janus_moe.spec import InstanceId
from janus_moe.transport.base import ExchangeLayout, WaitRule
from janus_moe.transport.host_memory.host_peers import HostPeers, NoHostPeers
from janus_moe.transport.lockstep.control_block import ControlBlock, control_block_bytes
from janus_moe.transport.lockstep.participant import Late, Wiring
from janus_moe.transport.lockstep.wakeup import ThreadWakeup
from janus_moe.transport.network.channel import Channel
from janus_moe.transport.network.control_broadcast import ControlBroadcast, LeaveNotice
from janus_moe.transport.network.executor import Executor

_NOTICE_S = 1.0  # how long a broken connection waits for the notice that explains it
_JOIN_S = 2.0
_LIMIT = 1.5  # of a wait, in timeouts; the watch ends it after 1 to 1.25


class Endpoint:
    """What the port of one instance works with.

    instance: whose end this is.
    host_peers: instances of this host whose memory it shares.
    executor: runs this instance's programs over `channel` and in the memory of `host_peers`.
    phase: (stage, step, layer) that the instance is in, for errors.
    """

    def __init__(
        self,
        instance: InstanceId,
        layout: ExchangeLayout,
        channel: Channel,
        host_peers: HostPeers | NoHostPeers,
        executor: Executor,
    ) -> None:
        self.instance = instance
        self.topology = layout.topology
        self.executor = executor
        self.wakeup = host_peers.wakeup()
        self.phase: tuple[str, int, int] = ("announce", 0, 0)
        self._membership = layout.membership
        self._channel = channel
        self._host_peers = host_peers
        self._words = memoryview(bytearray(control_block_bytes(layout.shape))).cast("q")
        self._failure: ExchangeError | None = None
        self._failing = threading.Lock()
        self._failed = threading.Event()
        self._wait: tuple[float, Late] | None = None
        self._watch: threading.Thread | None = None
        rank, num_ranks = executor.rank, self.topology.num_ranks
        self.broadcast = ControlBroadcast(
            rank,
            num_ranks,
            channel,
            self._words,
            on_line=self.wakeup.notify,
            on_peer_left=self._on_peer_left,
            on_peer_lost=self._on_peer_lost,
        )
        # The broadcast wakes the others, in their own processes; no thread waits for them here.
        wakeups = [self.wakeup if peer == rank else ThreadWakeup() for peer in range(num_ranks)]
        self.wiring = Wiring(
            attention_wakeups=wakeups[: layout.shape.attention],
            expert_wakeups=wakeups[layout.shape.attention :],
            start_experts=lambda key: None,
            why_closed=self.why_closed,
            epoch=layout.membership.placement_epoch,
            on_timeout=self.fail,
        )
        self.broadcast.start()

    def control_block(self) -> ControlBlock:
        """A view of the control block for one thread."""
        return ControlBlock(self._membership, self._words)

    def name(self, rank: int) -> str:
        """`expert 0 (pid 12)`; rank: global."""
        return self.control_block().name(self._membership.instances[rank])

    def start(self, rule: WaitRule) -> None:
        """Called once by the port: tells all peers that it is here, and starts the watch.

        The watch knows better who is late, but gloo loses track of a message that was under way
        when its connection closed: then only the limit of that wait itself ends it.
        """
        self.broadcast.publish()
        self.executor.timeout_s = _LIMIT * rule.timeout_s
        self._host_peers.spin_us = rule.spin_us
        self._watch = threading.Thread(
            target=self._keep_watch,
            args=(rule.timeout_s,),
            name=f"watch {self.instance}",
            daemon=True,
        )
        self._watch.start()

    @contextmanager
    def data_wait(self, stage: str, step: int, layer: int, late: Late) -> Iterator[None]:
        """Watches over what is done inside; its errors become the endpoint's."""
        self.phase = (stage, step, layer)
        self._wait = (time.monotonic(), late)
        try:
            yield
        except ExchangeError as error:
            raise self._reason(error) from error
        finally:
            self._wait = None

    def fail(self, error: ExchangeError) -> None:
        """Ends all waits of this instance with `error` and tells the others; the first counts."""
        with self._failing:
            if self._failure is not None:
                return
            self._failure = error
        self._words[0] = 1  # closes this process's copy of the control block
        self.broadcast.leave(error)
        self._channel.abort()
        self._host_peers.abort()
        self._failed.set()
        self.wakeup.notify()

    def leave(self) -> None:
        """Ends the instance's part in the exchange, as its port was closed."""
        self.fail(ExchangeClosed(f"{self.instance}: its end of the exchange was closed"))

    def why_closed(self) -> ExchangeError:
        return self._failure or ExchangeClosed("the exchange was shut down")

    def close(self) -> None:
        """Leaves, and waits for the endpoint's threads to end."""
        self.fail(ExchangeClosed("the exchange was shut down"))
        self.broadcast.join(_JOIN_S)
        if self._watch is not None and self._watch is not threading.current_thread():
            self._watch.join(_JOIN_S)
        self._host_peers.close()

    def _reason(self, error: ExchangeError) -> ExchangeError:
        """Why a data wait ended: a notice may say it better than the connection."""
        if not isinstance(error, (PeerLost, ExchangeClosed)) or not self._failed.wait(_NOTICE_S):
            self.fail(error)
        return self.why_closed()

    def _on_peer_left(self, rank: int, notice: LeaveNotice) -> None:
        self.fail(notice.error(self.name(rank)))

    def _on_peer_lost(self, rank: int) -> None:
        stage, step, layer = self.phase
        self.fail(PeerLost(peer=self.name(rank), stage=stage, step=step, layer=layer))

    def _keep_watch(self, timeout_s: float) -> None:
        control_block = self.control_block()
        seen, since = control_block.progress(), time.monotonic()
        while not self._failed.wait(timeout_s / 4):
            self.broadcast.publish(even_if_unchanged=False)
            progress, now, wait = control_block.progress(), time.monotonic(), self._wait
            if progress != seen:
                seen, since = progress, now
            elif wait is not None and now - max(since, wait[0]) >= timeout_s:
                error = wait[1](now - max(since, wait[0]))
                if error is not None:
                    self.fail(error)

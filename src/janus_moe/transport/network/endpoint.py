"""One instance's seat at an exchange among processes: board, bell, news, executor, and its end.

Whatever ends the seat (a deadline, a peer that is gone, a shutdown here or elsewhere) ends all
waits of the instance with one error, and tells everybody else why. One thread watches data waits,
which a bell cannot end: when nothing in the whole exchange moves for `timeout_s`, it ends them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from janus_moe.errors import ExchangeClosed, ExchangeError, ExchangeTimeout, PeerLost
from janus_moe.spec import InstanceId, PoolShape
from janus_moe.transport.base import WaitRule
from janus_moe.transport.exchange_plans.topology import Topology
from janus_moe.transport.host_memory.host_peers import HostPeers, NoHostPeers
from janus_moe.transport.lockstep.control_block import ControlBlock, control_block_bytes
from janus_moe.transport.lockstep.ports import Wiring
from janus_moe.transport.lockstep.wakeup import ThreadWakeup
from janus_moe.transport.network.channel import Channel
from janus_moe.transport.network.control_broadcast import ControlBroadcast, LeaveNotice
from janus_moe.transport.network.executor import Executor

Late = Callable[[float], ExchangeTimeout | None]
_NEWS_S = 1.0
_JOIN_S = 2.0
_LIMIT = 1.5  # of a wait, in timeouts; the watch ends it after 1 to 1.25


class Endpoint:
    """epoch: of the first steps. executor: runs this instance's programs over `channel` and in the
    memory of `host_peers`."""

    def __init__(
        self,
        instance: InstanceId,
        topology: Topology,
        channel: Channel,
        host_peers: HostPeers | NoHostPeers,
        executor: Executor,
        epoch: int,
    ) -> None:
        self.instance = instance
        self.topology = topology
        self.executor = executor
        self.wakeup = host_peers.wakeup()
        self.phase: tuple[str, int, int] = ("announce", 0, 0)  # stage, step, layer
        self._channel = channel
        self._host_peers = host_peers
        self._shape = PoolShape(
            attention=topology.num_attention_instances, expert=topology.num_expert_instances
        )
        self._words = memoryview(bytearray(control_block_bytes(self._shape))).cast("q")
        self._control_block = self.control_block()
        self._failure: ExchangeError | None = None
        self._failing = threading.Lock()
        self._failed = threading.Event()
        self._wait: tuple[float, Late] | None = None
        self._watch: threading.Thread | None = None
        rank = executor.rank
        self.broadcast = ControlBroadcast(
            rank,
            topology.num_ranks,
            channel,
            self._words,
            on_line=self.wakeup.notify,
            on_peer_left=self._on_peer_left,
            on_peer_lost=self._on_peer_lost,
        )
        # News wake the others, in their own processes; nobody parks at their bells here.
        wakeups = [
            self.wakeup if other == rank else ThreadWakeup() for other in range(topology.num_ranks)
        ]
        self.wiring = Wiring(
            attention_wakeups=wakeups[: topology.num_attention_instances],
            expert_wakeups=wakeups[topology.num_attention_instances :],
            start_experts=lambda key: None,
            why_closed=self.why_closed,
            epoch=epoch,
        )
        self.broadcast.start()

    def control_block(self) -> ControlBlock:
        """A view of the board for one thread."""
        return ControlBlock(self._shape, self._words)

    def start(self, rule: WaitRule) -> None:
        """Called once by the port: lets everybody know it is here, and starts the watch.

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
        """Watches over what is done inside; its errors become the seat's."""
        self.phase = (stage, step, layer)
        self._wait = (time.monotonic(), late)
        try:
            yield
        except ExchangeError as error:
            raise self._reason(error) from error
        finally:
            self._wait = None

    def fail(self, error: ExchangeError) -> None:
        """Ends all waits of this instance with `error` and tells the others; the first call
        counts."""
        with self._failing:
            if self._failure is not None:
                return
            self._failure = error
        self._close_control_block()
        self.broadcast.leave(error)
        self._channel.abort()
        self._host_peers.abort()
        self._failed.set()
        self.wakeup.notify()

    def why_closed(self) -> ExchangeError:
        return self._failure or ExchangeClosed("the exchange was shut down")

    def close(self) -> None:
        """Leaves, and waits for the seat's threads to end."""
        self.fail(ExchangeClosed("the exchange was shut down"))
        self.broadcast.join(_JOIN_S)
        if self._watch is not None and self._watch is not threading.current_thread():
            self._watch.join(_JOIN_S)
        self._host_peers.close()

    def _close_control_block(self) -> None:
        self._words[0] = 1

    def _reason(self, error: ExchangeError) -> ExchangeError:
        """Why a data wait ended: news may say it better than the connection."""
        if not isinstance(error, (PeerLost, ExchangeClosed)) or not self._failed.wait(_NEWS_S):
            self.fail(error)
        return self.why_closed()

    def _on_peer_left(self, rank: int, leave: LeaveNotice) -> None:
        self.fail(leave.error(self._name(rank)))

    def _on_peer_lost(self, rank: int) -> None:
        stage, step, layer = self.phase
        self.fail(PeerLost(peer=self._name(rank), stage=stage, step=step, layer=layer))

    def _name(self, rank: int) -> str:
        return self.control_block().name(self.topology.instance(rank))

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

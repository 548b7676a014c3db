"""One instance's place in an exchange: how it waits, is woken, and leaves.

It knows neither steps nor layers (`steps`, `batches`), nor how rows travel.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from janus_moe.errors import ExchangeClosed, ExchangeError, ExchangeTimeout
from janus_moe.spec import InstanceId
from janus_moe.transport.base import WaitRule
from janus_moe.transport.lockstep.control_block import ControlBlock
from janus_moe.transport.lockstep.wakeup import Wakeup

Late = Callable[[float], ExchangeTimeout | None]
"""The error of a wait of so many seconds; None where no peer is late and the wait goes on."""


def _ignore(error: ExchangeTimeout) -> None:
    """A timeout that only the instance itself needs to know of."""


@dataclass(frozen=True, slots=True)
class Wiring:
    """What the participants of an exchange share, as one process holds it.

    attention_wakeups: [attention instances] wake-up of each.
    expert_wakeups: [expert instances] wake-up of each.
    start_experts: makes the experts look at the layer pass with this key.
    why_closed: the error that ends all waits once the control block is closed.
    epoch: placement of the first steps.
    on_timeout: told of a wait that ended at its deadline.
    """

    attention_wakeups: Sequence[Wakeup]
    expert_wakeups: Sequence[Wakeup]
    start_experts: Callable[[int], None]
    why_closed: Callable[[], ExchangeError]
    epoch: int
    on_timeout: Callable[[ExchangeTimeout], None] = _ignore


class Participant:
    """What both kinds of port have: an instance that waits at its wake-up.

    control_block: a view for this instance's thread.
    woken: `wake` was called, and no wait has ended by it yet.
    """

    def __init__(
        self, instance: InstanceId, control_block: ControlBlock, wiring: Wiring, rule: WaitRule
    ) -> None:
        wakeups = (wiring.attention_wakeups, wiring.expert_wakeups)[instance.pool == "expert"]
        self.instance = instance
        self.rank = control_block.membership.rank(instance)
        self.control_block = control_block
        self.wiring = wiring
        self.wakeup = wakeups[self.rank]
        self.woken = False
        self._rule = rule
        self._closed = False
        control_block.sign_in(instance, os.getpid())

    def wake(self) -> None:
        self.woken = True
        self.wakeup.notify()

    def close(self) -> None:
        """Ends all waits of this instance, now and later, with ExchangeClosed."""
        self._closed = True
        self.wakeup.notify()

    def check_open(self) -> None:
        if self._closed:
            raise ExchangeClosed(f"{self.instance}: its end of the exchange was closed")
        if self.control_block.closed:
            raise self.wiring.why_closed()

    def wait_for(self, ready: Callable[[], bool], late: Late) -> None:
        """Blocks until `ready`.

        After the deadline without any progress of the exchange it raises `late(seconds waited)`,
        or goes on waiting where that is None: no peer is late when none has begun.
        """
        self.check_open()
        if ready() or self._spin(ready):
            return
        timeout_s = self._rule.timeout_s
        seen, since = self.control_block.progress(), time.monotonic()
        while True:
            self.wakeup.wait(timeout_s / 4)  # so that the deadline is met within a quarter
            self.check_open()
            if ready():
                return
            progress, now = self.control_block.progress(), time.monotonic()
            if progress != seen:
                seen, since = progress, now
            elif now - since >= timeout_s and (error := late(now - since)) is not None:
                self.wiring.on_timeout(error)
                raise error

    def _spin(self, ready: Callable[[], bool]) -> bool:
        if self._rule.spin_us <= 0:
            return False
        end = time.perf_counter() + self._rule.spin_us * 1e-6
        while time.perf_counter() < end:
            if ready():
                return True
        return False

"""The steps of one attention instance: announcing them, their epochs, the order of layers.

How rows travel is not known here; the ports that have a `StepSequence` bring that.
"""

from __future__ import annotations

from torch import Tensor

from janus_moe.errors import ExchangeTimeout
from janus_moe.spec import InstanceId
from janus_moe.transport.base import Ticket, WaitRule
from janus_moe.transport.lockstep.control_block import (
    MAX_LAYERS,
    ControlBlock,
    layer_pass_key,
    step_and_layer,
)
from janus_moe.transport.lockstep.participant import Participant, Wiring


class StepSequence:
    """The lockstep state machine of an attention instance.

    step: the latest that this instance has announced, -1 for none.
    num_tokens: rows that it announced for this step.
    counts: [attention instances] rows of each in this step; None until the first dispatch.
    key: `layer_pass_key` of the latest dispatch.
    in_flight: that layer pass is not combined yet.
    """

    def __init__(
        self, instance: InstanceId, control_block: ControlBlock, wiring: Wiring, rule: WaitRule
    ) -> None:
        self.participant = Participant(instance, control_block, wiring, rule)
        self.rank = self.participant.rank
        self.step = control_block.announced_steps(self.rank) - 1
        self.num_tokens = 0
        self.counts: tuple[int, ...] | None = None
        self.key = 0
        self.in_flight = False
        self._control_block = control_block
        self._peers = [
            wakeup for rank, wakeup in enumerate(wiring.attention_wakeups) if rank != self.rank
        ]
        self._epoch = wiring.epoch  # of the next announcements
        self._step_epoch = wiring.epoch

    def begin(self, num_tokens: int, plans: int = 0) -> int:
        """Announces the next step and returns its number; plans: exchange plans, packed."""
        instance = self.participant.instance
        if self.in_flight:
            raise ValueError(f"{instance}: begin_step between dispatch and combine")
        if num_tokens < 0:
            raise ValueError(f"{instance}: {num_tokens} tokens in a step")
        step = self.step + 1
        if self._peers:
            self._wait_for_announcements(step - 1, layer=0)
        self.participant.check_open()
        self._control_block.announce(self.rank, step, num_tokens, self._epoch, plans)
        for wakeup in self._peers:
            wakeup.notify()
        self.step = step
        self.num_tokens = num_tokens
        self.counts = None
        return step

    def leave(self) -> None:
        """Says that this instance takes no part in later steps; wakes all that may wait for it."""
        if self.in_flight:
            raise ValueError(f"{self.participant.instance}: leave between dispatch and combine")
        self._control_block.leave(self.rank, self._epoch)
        for wakeup in (*self._peers, *self.participant.wiring.expert_wakeups):
            wakeup.notify()

    def use_epoch(self, epoch: int) -> None:
        self._epoch = max(self._epoch, epoch)

    def pending(self) -> bool:
        """Whether a peer has announced a step that this instance has not."""
        return self._control_block.latest_announced() > self.step

    def wait(self, timeout_s: float | None) -> None:
        participant = self.participant
        participant.check_open()
        if not participant.woken and not self.pending():
            participant.wakeup.wait(timeout_s)
            participant.check_open()
        participant.woken = False

    def next_key(self, layer: int, hidden: Tensor) -> int:
        """The key of this instance's next dispatch; ValueError where the contract forbids it."""
        key = layer_pass_key(self.step, layer)
        if self.in_flight or key <= self.key or not 0 <= layer < MAX_LAYERS:
            raise ValueError(
                f"{self.participant.instance}: dispatch of layer {layer} of step {self.step}: "
                "layers of a step come in ascending order, each combined before the next"
            )
        if self.num_tokens == 0 or hidden.shape[0] != self.num_tokens:
            raise ValueError(
                f"{self.participant.instance}: dispatch of {tuple(hidden.shape)} in step "
                f"{self.step}, which was announced with {self.num_tokens} tokens"
            )
        self.participant.check_open()
        return key

    def begin_layers(self, layer: int) -> tuple[int, ...]:
        """Waits until all peers have announced the step; [attention instances] rows of each."""
        self._wait_for_announcements(self.step, layer)
        self.counts = counts = self._control_block.counts(self.step)
        self._step_epoch = self._control_block.epoch(self.step)
        return counts

    def dispatched(self, key: int, layer: int) -> Ticket:
        """The layer pass with this key is in flight."""
        self.key = key
        self.in_flight = True
        self._control_block.dispatch(self.rank, key)
        return Ticket(self._step_epoch, self.step, layer)

    def check_in_flight(self, ticket: Ticket) -> int:
        """The key of a ticket that is in flight; ValueError for any other."""
        key = layer_pass_key(ticket.step, ticket.layer)
        if not self.in_flight or key != self.key:
            raise ValueError(f"{self.participant.instance}: {ticket} is not in flight")
        return key

    def late_reply(self, waited_s: float) -> ExchangeTimeout:
        """Blames the attention instances that hold up the experts before the experts."""
        step, layer = step_and_layer(self.key)
        peer = self._control_block.silent_dispatchers(self.key, self.counts or ())
        stage = "dispatch"
        if not peer:
            peer, stage = self._control_block.silent_experts(self.key), "reply"
        return ExchangeTimeout(peer=peer, stage=stage, step=step, layer=layer, waited_s=waited_s)

    def _wait_for_announcements(self, step: int, layer: int) -> None:
        def late(waited_s: float) -> ExchangeTimeout:
            peer = self._control_block.silent_announcers(step)
            return ExchangeTimeout(
                peer=peer, stage="announce", step=step, layer=layer, waited_s=waited_s
            )

        self.participant.wait_for(lambda: self._control_block.all_announced(step), late)

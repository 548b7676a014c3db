"""The batches of one expert instance: which it has answered, and which peer keeps it waiting.

How rows travel is not known here; the ports that have a `BatchSequence` bring that.
"""

from __future__ import annotations

import torch
from torch import Tensor

from janus_moe.errors import ExchangeEnded, ExchangeTimeout
from janus_moe.spec import InstanceId
from janus_moe.transport.base import ReplyMetadata, WaitRule, Work
from janus_moe.transport.lockstep.control_block import ControlBlock, layer_pass_key, step_and_layer
from janus_moe.transport.lockstep.participant import Participant, Wiring


class BatchSequence:
    """The lockstep state machine of an expert instance.

    answered: `layer_pass_key` of the latest batch that it has replied to.
    """

    def __init__(
        self, instance: InstanceId, control_block: ControlBlock, wiring: Wiring, rule: WaitRule
    ) -> None:
        self.participant = Participant(instance, control_block, wiring, rule)
        self.rank = self.participant.rank
        self.answered = control_block.latest_reply(self.rank)
        self._control_block = control_block

    def check_reply(self, work: Work, partial: Tensor) -> None:
        self.participant.check_open()
        if partial.shape != work.hidden.shape:
            raise ValueError(
                f"{self.participant.instance}: reply of {tuple(partial.shape)} to "
                f"{tuple(work.hidden.shape)}"
            )
        if partial.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"reply of {partial.dtype}, partial sums are float32 or float64")

    def replied(self, work: Work, metadata: ReplyMetadata) -> int:
        """Says that the batch is answered; returns its key."""
        self.answered = key = layer_pass_key(work.ticket.step, work.ticket.layer)
        self._control_block.reply(self.rank, key, metadata)
        return key

    def ended(self) -> ExchangeEnded:
        """What `accept` raises when no step will come any more."""
        generation = self._control_block.membership.generation
        return ExchangeEnded(
            f"{self.participant.instance}: all attention instances have left generation "
            f"{generation}"
        )

    def late_dispatch(self, waited_s: float) -> ExchangeTimeout | None:
        """Blames the attention instances without which no batch is complete, if any has begun."""
        key = self._control_block.latest_dispatched()
        if key > self.answered:
            step, layer = step_and_layer(key)
            counts = self._control_block.counts(step)
            peer, stage = self._control_block.silent_dispatchers(key, counts), "dispatch"
        else:
            step, layer = self._control_block.latest_announced(), 0
            peer, stage = self._control_block.silent_announcers(step), "announce"
        if not peer:
            return None
        return ExchangeTimeout(peer=peer, stage=stage, step=step, layer=layer, waited_s=waited_s)

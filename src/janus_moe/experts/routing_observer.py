"""What an expert instance tells of the routing that it sees: reports of load, and recordings.

It runs after the reply, when no instance waits for it. It does not know what the routing is
computed with, nor what becomes of its reports.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from torch import Tensor

from janus_moe.experts.recording import RoutingRecorder
from janus_moe.experts.step_routing import RoutedBatch, StepRouting
from janus_moe.messages import ExpertLoad
from janus_moe.policy.statistics import RoutingWindow

REPORT_EVERY_S = 1.0
WINDOW_BUCKETS, BUCKET_BATCHES = 32, 32
"""How finely a change of routing is dated; whenever a bucket is full there is a look for one."""

OnLoad = Callable[[ExpertLoad], None]


class RoutingObserver:
    """Counts the routing of steps, and shows it to a recorder.

    num_layers: MoE layers of the model.
    num_experts: logical experts of a layer.
    on_load: told what routing did, every second and every `BUCKET_BATCHES` steps; None where
        another instance, which sees the same routing, reports it.
    recorder: gets the routing of every batch, its owner closes it; None where it is not recorded.

    One thread at a time calls it.
    """

    def __init__(
        self,
        num_layers: int,
        num_experts: int,
        on_load: OnLoad | None = None,
        recorder: RoutingRecorder | None = None,
    ) -> None:
        self._num_layers = num_layers
        self._on_load = on_load
        self._recorder = recorder
        self._watching = on_load is not None or recorder is not None
        self._window = RoutingWindow(
            num_layers,
            num_experts,
            WINDOW_BUCKETS * BUCKET_BATCHES,
            WINDOW_BUCKETS,
            coactivation_stride=0,
        )
        self._on_device = StepRouting()
        self._counted = 0  # batches of the last layer
        self._reported_at = 0.0

    def batch(self, layer: int, expert_ids: Tensor) -> None:
        """One batch was routed.

        layer: MoE layer number.
        expert_ids: [tokens, top_k] int32, logical ids; on a device they are read a step later.
        """
        if not self._watching:
            return
        if expert_ids.device.type == "cpu":
            self._count(RoutedBatch(layer, expert_ids.numpy()))
        else:
            self._on_device.add(layer, expert_ids)

    def end_of_step(self) -> None:
        """All layers of a step have been seen; from time to time there is a report."""
        if not self._watching:
            return
        for batch in self._on_device.end_of_step():
            self._count(batch)
        if self._recorder is not None:
            self._recorder.end_of_step()
        now = time.monotonic()
        due = self._counted % BUCKET_BATCHES == 0 or now - self._reported_at >= REPORT_EVERY_S
        if self._on_load is not None and due:
            self._reported_at = now
            self._on_load(self._load())

    def forget_unfinished(self) -> None:
        """The step under way, if any, was dropped; recordings have whole batches only."""
        self._on_device.forget_unfinished()
        if self._recorder is not None:
            self._recorder.forget_unfinished()

    def _count(self, batch: RoutedBatch) -> None:
        if self._on_load is not None:
            self._window.record(*batch)
            self._counted += batch.layer == self._num_layers - 1
        if self._recorder is not None:
            self._recorder.record(*batch)

    def _load(self) -> ExpertLoad:
        changed = self._window.forget_change()
        seen = self._window.read()
        return ExpertLoad(
            num_batches=tuple(seen.num_batches.tolist()),
            num_tokens=tuple(seen.num_tokens.tolist()),
            tokens=tuple(map(tuple, seen.tokens.tolist())),
            changed=changed,
        )

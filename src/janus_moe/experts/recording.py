"""Records the routing of a running service into a file, beside the thread that serves.

Written when the recorded tokens have doubled, at the bound, and at the end; always as a whole, so a
crash loses at most what came after the last time. It never fails the service: what cannot be
written is said in the log. It does not know where the routing comes from.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from janus_moe.policy.routing_trace import RoutingTrace, TraceRecorder

logger = logging.getLogger(__name__)

FIRST_WRITE_TOKENS = 4096


class RoutingRecorder:
    """One thread calls `record` and `end_of_step`; `close` may come from another, once.

    path: of the file.
    num_layers: MoE layers of the model.
    num_experts: logical experts of a layer.
    max_tokens: recording ends with so many.
    """

    def __init__(self, path: Path, num_layers: int, num_experts: int, max_tokens: int) -> None:
        self._path = path
        self._recorder = TraceRecorder(num_layers, num_experts, max_tokens)
        self._next_write = min(FIRST_WRITE_TOKENS, max_tokens)
        self._writer: threading.Thread | None = None
        self._done = False

    def record(self, layer: int, expert_ids: NDArray[np.int32]) -> None:
        """One batch was routed.

        layer: MoE layer number.
        expert_ids: [tokens, top_k] int32, logical ids.
        """
        if not self._done:
            self._recorder.record(layer, expert_ids)

    def end_of_step(self) -> None:
        """All layers of a batch have been recorded; from time to time a write begins."""
        recorder = self._recorder
        if self._done or recorder.num_tokens < self._next_write or self._writing():
            return
        if recorder.full:
            self._done = True
            logger.warning(
                "routing of %d tokens was recorded in %s; recording has ended "
                "(--record-routing-tokens)",
                recorder.num_tokens,
                self._path,
            )
        self._next_write = min(2 * recorder.num_tokens, recorder.max_tokens or 0)
        trace = recorder.first_batches(recorder.num_batches)
        self._writer = threading.Thread(target=self._write, args=(trace,), name="record")
        self._writer.start()

    def forget_unfinished(self) -> None:
        """The step under way was dropped, so it is not recorded; the thread that records calls."""
        self._recorder.forget_unfinished()

    def close(self) -> None:
        """Writes what is not in the file yet; nothing is recorded afterwards."""
        was_done, self._done = self._done, True
        if self._writer is not None:
            self._writer.join()
        if was_done:
            return
        if self._recorder.num_tokens == 0:
            logger.warning("no routing was recorded: %s was not written", self._path)
            return
        self._write(self._recorder.first_batches(self._recorder.num_batches))

    def _writing(self) -> bool:
        return self._writer is not None and self._writer.is_alive()

    def _write(self, trace: RoutingTrace) -> None:
        try:
            trace.save(self._path)
        except OSError as error:
            logger.warning("routing could not be written to %s: %s", self._path, error)

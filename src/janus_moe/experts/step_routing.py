"""The routing of whole steps, copied from a device to the host without a wait.

Statistics and recordings are made on the host and no instance waits for them, so they may be a step
late: by the end of the next step the copy has long arrived. It does not know what becomes of them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class RoutedBatch(NamedTuple):
    """The routing of one batch at one layer.

    layer: MoE layer number.
    expert_ids: [tokens, top_k] int32, logical ids.
    """

    layer: int
    expert_ids: NDArray[np.int32]


class StepRouting:
    """The batches of this step and the copy of those before; one thread at a time calls it."""

    def __init__(self) -> None:
        self._layers: list[int] = []
        self._ids: list[Tensor] = []
        self._before: _Copy | None = None

    def add(self, layer: int, expert_ids: Tensor) -> None:
        """One batch was routed.

        layer: MoE layer number.
        expert_ids: [tokens, top_k] int32 on a device.
        """
        self._layers.append(layer)
        self._ids.append(expert_ids)

    def forget_unfinished(self) -> None:
        """The step under way was dropped."""
        self._layers, self._ids = [], []

    def end_of_step(self) -> list[RoutedBatch]:
        """Starts to copy what was added; returns the batches of the step before."""
        before = [] if self._before is None else self._before.batches()
        self._before = _Copy(self._layers, self._ids) if self._ids else None
        self._layers, self._ids = [], []
        return before


class _Copy:
    def __init__(self, layers: list[int], ids: list[Tensor]) -> None:
        self._layers = layers
        self._rows = [len(batch) for batch in ids]
        together = torch.cat(ids)
        self._host = together.to("cpu", non_blocking=True)  # into pinned memory
        self._arrived: torch.cuda.Event | None = None
        if together.is_cuda:
            self._arrived = torch.cuda.current_stream(together.device).record_event()

    def batches(self) -> list[RoutedBatch]:
        if self._arrived is not None:
            self._arrived.synchronize()
        arrays = np.split(self._host.numpy(), np.cumsum(self._rows[:-1]))
        return [RoutedBatch(*pair) for pair in zip(self._layers, arrays, strict=True)]

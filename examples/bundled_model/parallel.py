"""Data-parallel steps of a few single-threaded processes over parameters in shared memory.

One process per core loses less to other programs on the machine than one process with many threads,
which waits at the end of every small operation. Knows nothing of the model or the schedule.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier

import torch
import torch.multiprocessing as mp
from torch import Tensor, nn


def _shared_zeros(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    zeros = torch.zeros(shape, dtype=dtype)
    zeros.share_memory_()  # type: ignore[no-untyped-call]
    return zeros


@dataclass(frozen=True)
class SharedState:
    """What all processes see; made once by the parent.

    grads: per process, per parameter, in the order of `network.parameters()`.
    squared_norms: [processes] float64, of each process's share of the mean gradient.
    elapsed_s: [1] float64, the run's age as process 0 last told it.
    """

    network: nn.Module
    grads: tuple[tuple[Tensor, ...], ...]
    squared_norms: Tensor
    elapsed_s: Tensor
    barrier: Barrier

    @staticmethod
    def create(network: nn.Module, num_processes: int) -> "SharedState":
        network.share_memory()
        grads = tuple(
            tuple(_shared_zeros(p.shape, p.dtype) for p in network.parameters())
            for _ in range(num_processes)
        )
        squared_norms = _shared_zeros(torch.Size([num_processes]), torch.float64)
        elapsed_s = _shared_zeros(torch.Size([1]), torch.float64)
        barrier = mp.get_context("spawn").Barrier(num_processes)
        return SharedState(network, grads, squared_norms, elapsed_s, barrier)


class ParallelStep:
    """One process's side of a step: mean gradients of the parameters it owns, clip, update."""

    def __init__(self, shared: SharedState, process_id: int, owned_names: set[str]) -> None:
        self._shared = shared
        self._process_id = process_id
        self._owned: list[tuple[nn.Parameter, int]] = []
        for index, (name, parameter) in enumerate(shared.network.named_parameters()):
            parameter.grad = shared.grads[process_id][index]
            if name in owned_names:
                self._owned.append((parameter, index))

    @torch.no_grad()
    def finish(
        self, optimizers: Sequence[torch.optim.Optimizer], max_norm: float, elapsed_s: float
    ) -> float:
        """Call after `backward`; returns the run's age in seconds, the same in every process."""
        shared = self._shared
        shared.barrier.wait()
        total = 0.0
        for parameter, index in self._owned:
            mean = torch.stack([grads[index] for grads in shared.grads]).mean(0)
            total += float(mean.square().sum())
            parameter.grad = mean
        shared.squared_norms[self._process_id] = total
        if self._process_id == 0:
            shared.elapsed_s[0] = elapsed_s
        shared.barrier.wait()
        norm = float(shared.squared_norms.sum()) ** 0.5
        for parameter, _ in self._owned:
            assert parameter.grad is not None
            parameter.grad.mul_(min(1.0, max_norm / (norm + 1e-9)))
        for optimizer in optimizers:
            optimizer.step()
        for grad, parameter in zip(
            shared.grads[self._process_id], shared.network.parameters(), strict=True
        ):
            parameter.grad = grad.zero_()
        agreed_s = float(shared.elapsed_s[0])
        shared.barrier.wait()
        return agreed_s

"""The activation scheduler on a GPU: one layer's tables in its memory, launches without waiting.

Nothing is copied to the host, grids depend on shapes only and scratch space is made once, so
`schedule` can be captured in a CUDA graph and replayed with other ids. No timing has been taken
on a GPU yet: the constants below are guesses, `benchmarks.gpu_scheduling` measures.
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from janus_moe.errors import ConfigError
from janus_moe.kernels.activation_schedule.tables import (
    ReplicaTables,
    ScheduleTensors,
    check_arguments,
)
from janus_moe.spec import DevicePolicy

WORD_BITS = 32
MAX_EXPERTS, MAX_INSTANCES = 1024, 64  # what one program's registers hold
MIN_LANES = 8
IDS_IN_ONE_LAUNCH = 1024  # beyond, marking and rewriting are spread over the GPU
BLOCK = 256  # ids per program
TILE_PER_WARP = 512  # (word, instance) pairs


class ActivationScheduleKernel:
    """`exact` or `aebs` for one layer; answers equal the policy package's with ==.

    Call `warm_up` before a capture: Triton compiles a program at its first launch.
    """

    def __init__(
        self, tables: ReplicaTables, policy: DevicePolicy, device: torch.device | str
    ) -> None:
        layout = tables.layout
        if policy not in get_args(DevicePolicy):
            names = " or ".join(get_args(DevicePolicy))
            raise ConfigError(f"on a GPU --activation-policy must be {names}; got {policy!r}")
        if layout.num_experts > MAX_EXPERTS or layout.num_instances > MAX_INSTANCES:
            raise ConfigError(
                f"the GPU scheduler takes at most {MAX_EXPERTS} experts on {MAX_INSTANCES} "
                f"instances; got {layout.num_experts} on {layout.num_instances}"
            )
        self._programs = _load_programs()
        self._num_experts, self._num_instances = layout.num_experts, layout.num_instances
        words = _power_of_two(-(-layout.num_experts // WORD_BITS))
        lanes = max(MIN_LANES, _power_of_two(layout.num_instances))
        self._tile = {"WORDS": words, "LANES": lanes}
        self._solving = {
            "REPAIR": policy == "exact",
            "num_warps": min(4, max(1, words * lanes // TILE_PER_WARP)),
        }
        held, movable, slot_of, first = _device_tables(tables, words, lanes)
        self._held_words = torch.from_numpy(held).to(device)
        self._movable_words = torch.from_numpy(movable).to(device)
        self._slot_of = torch.from_numpy(slot_of).to(device)
        self._first_replica = torch.from_numpy(first).to(device)
        self._device = self._slot_of.device
        self._flags = self._new(words * WORD_BITS + 1)
        self._instance_of_expert = self._new(layout.num_experts)
        self._activated = self._new(layout.num_instances)
        self._optimal, self._invalid = self._new(1), self._new(1)

    def warm_up(self) -> None:
        """Compile and load every program."""
        for num_ids in (1, IDS_IN_ONE_LAUNCH + 1):
            self.schedule(torch.full((num_ids, 1), -1, dtype=torch.int32, device=self._device), 0)

    def schedule(self, expert_ids: torch.Tensor, instance_index: int) -> ScheduleTensors:
        """Contract of `ActivationSchedule`; ids out of range set `invalid` and are ignored."""
        check_arguments(expert_ids, instance_index, self._device, self._num_instances)
        answer = ScheduleTensors(
            self._instance_of_expert,
            self._activated,
            self._optimal,
            self._invalid,
            torch.empty_like(expert_ids),
            torch.empty_like(expert_ids),
        )
        with self._on_device():
            if expert_ids.numel() <= IDS_IN_ONE_LAUNCH:
                self._launch_one(expert_ids, instance_index, answer)
            else:
                self._launch_three(expert_ids, instance_index, answer)
        return answer

    def _launch_one(
        self, expert_ids: torch.Tensor, instance_index: int, answer: ScheduleTensors
    ) -> None:
        self._programs.mark_solve_rewrite[(1,)](
            expert_ids, self._held_words, self._movable_words, self._slot_of, self._first_replica,
            *answer, expert_ids.numel(), self._num_experts, self._num_instances, instance_index,
            BLOCK=BLOCK, **self._tile, **self._solving,
        )  # fmt: skip

    def _launch_three(
        self, expert_ids: torch.Tensor, instance_index: int, answer: ScheduleTensors
    ) -> None:
        num_ids = expert_ids.numel()
        blocks = (-(-num_ids // BLOCK),)
        self._programs.mark[blocks](
            expert_ids, self._flags, num_ids, self._num_experts,
            WORDS=self._tile["WORDS"], BLOCK=BLOCK,
        )  # fmt: skip
        self._programs.solve[(1,)](
            self._flags, self._held_words, self._movable_words, *answer[:4],
            self._num_experts, self._num_instances, **self._tile, **self._solving,
        )  # fmt: skip
        self._programs.rewrite[blocks](
            self._flags, expert_ids, self._instance_of_expert, self._slot_of, self._first_replica,
            answer.slot_ids, answer.replica_ids, num_ids, self._num_experts, instance_index,
            BLOCK=BLOCK, **self._tile,
        )  # fmt: skip

    def _new(self, size: int) -> torch.Tensor:
        return torch.zeros(size, dtype=torch.int32, device=self._device)

    def _on_device(self) -> AbstractContextManager[None]:
        """Triton launches on the current device, which need not be the tensors'."""
        if self._device.type == "cuda":
            return torch.cuda.device(self._device)
        return contextlib.nullcontext()


def _load_programs() -> Any:
    try:
        from janus_moe.kernels.activation_schedule import programs
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "triton":
            raise
        raise ConfigError(
            "scheduling on a GPU needs Triton, which is not installed; "
            "install it with: pip install 'janus-moe[gpu]'"
        ) from error
    return programs


def _power_of_two(number: int) -> int:
    """The smallest that is not below `number`."""
    return 1 << (number - 1).bit_length()


def _device_tables(
    tables: ReplicaTables, words: int, lanes: int
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """held: [words, lanes] and movable: [words], bits as in `assignment`; slot_of: [experts, lanes]
    and first_replica: [lanes], as in `programs.rewrite_block`."""
    num_experts, num_instances = tables.slot_of.shape
    slot_of = np.full((num_experts, lanes), -1, np.int32)
    slot_of[:, :num_instances] = tables.slot_of
    first = np.zeros(lanes, np.int32)
    first[:num_instances] = tables.first_replica
    held = _as_words(slot_of >= 0, words)
    movable = _as_words((tables.layout.num_replicas > 1)[:, None], words)[:, 0]
    return held, np.ascontiguousarray(movable), slot_of, first


def _as_words(flags: NDArray[np.bool_], words: int) -> NDArray[np.int32]:
    """flags: [experts, columns] to [words, columns], expert e in bit e % 32 of word e // 32."""
    padded = np.zeros((words * WORD_BITS, flags.shape[1]), np.uint32)
    padded[: len(flags)] = flags
    shifts = np.arange(WORD_BITS, dtype=np.uint32)[:, None]
    bits = padded.reshape(words, WORD_BITS, -1) << shifts
    return np.asarray(np.bitwise_or.reduce(bits, axis=1).view(np.int32))

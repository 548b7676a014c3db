"""A GPU that is not there: CPU tensors that say they are on `cuda`, and refuse what real ones do.

    with pretended_gpu() as gpu:
        x = torch.ones(3, device="cuda")    # x.numpy() and x + torch.ones(3) raise
        x.tolist()
    assert gpu.waits == 1                   # how often the host would have waited for the device

What runs is torch's CPU arithmetic, so this shows which code paths a GPU takes and what they ask
of its tensors, neither that its kernels are right nor how fast they are. Streams and events are not
pretended: `is_cuda` stays False. One thread at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter, tree_map_only

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
READING = {"item", "tolist", "nonzero", "unique", "bincount", "equal"} | {
    f"__{name}__" for name in ("bool", "int", "float", "index", "contains")
}
"""Functions whose result the host must have before it can go on."""
MIXING = {"to", "copy_", "__getitem__", "__setitem__"}
"""Functions that take tensors of both devices: copies, and indices on the host."""


class GpuTensor(Tensor):
    """The same memory as the CPU tensor that it was made of with `as_subclass`."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.__name__
        if func == Tensor.device.__get__:
            return CUDA
        if name == "numpy":
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if name not in MIXING:
            _refuse_strangers(name, (args, kwargs))
        to_host = _goes_to_host(name, args, kwargs)
        if _gpu is not None and (to_host or name in READING or _has_mask(name, args)):
            _gpu.waits += not kwargs.get("non_blocking")
        result = _without_pretence(func, args, kwargs)
        return result if to_host else pretend(result)


class PretendedGpu(TorchFunctionMode):
    """Makes tensors "on the GPU" where somebody names it as a device."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.device or not any(map(_names_gpu, (*args, *kwargs.values()))):
            return func(*args, **kwargs)
        return pretend(_without_pretence(func, args, kwargs))


_gpu: PretendedGpu | None = None


@contextmanager
def pretended_gpu() -> Iterator[PretendedGpu]:
    global _gpu
    with PretendedGpu() as gpu:
        _gpu = gpu
        try:
            yield gpu
        finally:
            _gpu = None


def pretend(values: Any) -> Any:
    """The same values with all tensors on the GPU."""
    return tree_map_only(Tensor, lambda tensor: tensor.as_subclass(GpuTensor), values)


def _without_pretence(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with torch._C.DisableTorchFunctionSubclass():
        args, kwargs = tree_map_only(
            (torch.device, str), lambda value: CPU if _names_gpu(value) else value, (args, kwargs)
        )
        return tree_map_only(Tensor, lambda t: t.as_subclass(Tensor), func(*args, **kwargs))


def _names_gpu(value: Any) -> bool:
    return isinstance(value, torch.device | str) and str(value).partition(":")[0] == "cuda"


def _goes_to_host(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if name == "cpu":
        return True
    if name == "to":
        return any(str(value) == "cpu" for value in (*args[1:], kwargs.get("device")))
    return name == "copy_" and not isinstance(args[0], GpuTensor)


def _has_mask(name: str, args: tuple[Any, ...]) -> bool:
    """A mask's trues are counted on the host."""
    return name in ("__getitem__", "__setitem__") and any(
        isinstance(leaf, GpuTensor) and leaf.dtype == torch.bool for leaf in tree_iter(args[1])
    )


def _refuse_strangers(name: str, values: Any) -> None:
    for leaf in tree_iter(values):
        if isinstance(leaf, Tensor) and not isinstance(leaf, GpuTensor) and leaf.dim() > 0:
            raise RuntimeError(f"{name}: expected all tensors on cuda:0, found one on cpu")

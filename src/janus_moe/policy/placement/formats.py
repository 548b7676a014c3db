"""The field's exchange formats: EPLB's tensors, SGLang's expert-location JSON.

All arrays are numpy. Torch tensors are accepted, and answered with torch tensors by
`rebalance_experts`, without this module knowing torch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from janus_moe.errors import ConfigError
from janus_moe.policy.placement import eplb, methods
from janus_moe.policy.placement.search import activation_probability
from janus_moe.policy.placement.value import Placement

SGLANG_KEY = "physical_to_logical_map"


class EplbTensors(NamedTuple):
    """phy2log: [layers, replicas] int64, logical expert of each physical one, instance by instance.
    log2phy: [layers, experts, most copies] int64, physical ids of each expert, -1 = padding.
    logcnt: [layers, experts] int64, copies of each expert.
    """

    phy2log: NDArray[np.int64]
    log2phy: NDArray[np.int64]
    logcnt: NDArray[np.int64]


def rebalance_experts(
    weight: Any,
    num_replicas: int,
    num_groups: int,
    num_nodes: int,
    num_gpus: int,
    *,
    method: Literal["janus", "eplb"] = "janus",
    batch_size: int = 64,
    top_k: int = 8,
) -> EplbTensors:
    """EPLB's call, to be tried in its place: `from janus_moe.policy.placement import ...`.

    weight: [layers, experts] tokens of each expert. method: `eplb` is DeepSeek's algorithm; `janus`
    places for activation scheduling and ignores groups and nodes. batch_size, top_k: tokens per
    step and experts per token that `janus` plans for. The answer is torch if `weight` is.
    """
    tokens = methods.as_load(_as_numpy(weight))
    num_experts = tokens.shape[1]
    eplb.check_shape(num_experts, num_replicas, num_groups, num_nodes, num_gpus)
    if method == "eplb":
        layers = [
            eplb.balance(row, num_replicas, num_groups, num_nodes, num_gpus) for row in tokens
        ]
        tensors = _complete(np.array(layers), num_experts)
    elif method == "janus":
        if num_replicas > num_experts * num_gpus:
            raise ConfigError(
                f"{num_replicas} replicas of {num_experts} experts on {num_gpus} GPUs: at most "
                f"{num_experts * num_gpus}, one of each expert per GPU"
            )
        probability = activation_probability(tokens, tokens.sum(axis=1) / top_k, batch_size)
        capacity = [num_replicas // num_gpus] * num_gpus
        tensors = to_eplb(methods.place_experts("janus", probability, capacity))
    else:
        raise ConfigError(f"method must be janus or eplb, got {method!r}")
    if hasattr(weight, "new_tensor"):  # torch: integers, on the same device
        return EplbTensors(*(weight.long().new_tensor(array) for array in tensors))
    return tensors


def to_eplb(placement: Placement) -> EplbTensors:
    """EPLB's tensors of a placement; it must give every instance equally many slots."""
    sizes = {len(held) for layer in placement.slots for held in layer}
    if len(sizes) > 1:
        raise ConfigError(
            f"EPLB's format has no uneven slots, but instances hold {min(sizes)} to {max(sizes)} "
            "experts; choose redundant experts so that the slots divide evenly"
        )
    flat = [[expert for held in layer for expert in held] for layer in placement.slots]
    return _complete(np.array(flat, np.int64), placement.num_experts)


def from_eplb(
    phy2log: Any, num_gpus: int, num_experts: int | None = None, epoch: int = 0
) -> Placement:
    """A placement from phy2log: [layers, replicas] logical ids, equally many per GPU.

    A second copy of an expert on one GPU, which EPLB may produce, is left out: it is of no use.
    num_experts: without it, as many as the largest id says.
    """
    table = _as_numpy(phy2log)
    if table.ndim != 2 or table.size == 0 or not np.issubdtype(table.dtype, np.integer):
        raise ConfigError(
            f"phy2log must be integers [layers, replicas], got {table.dtype} with shape "
            f"{table.shape}"
        )
    if num_gpus < 1 or table.shape[1] % num_gpus:
        raise ConfigError(
            f"{table.shape[1]} replicas per layer do not divide among {num_gpus} GPUs"
        )
    by_gpu = table.reshape(len(table), num_gpus, -1).tolist()
    slots = tuple(tuple(tuple(dict.fromkeys(held)) for held in layer) for layer in by_gpu)
    experts = int(table.max()) + 1 if num_experts is None else num_experts
    return Placement(epoch=epoch, num_experts=experts, slots=slots)


def write_sglang(placement: Placement, path: Path) -> None:
    """A file for `--init-expert-location`."""
    content = {SGLANG_KEY: to_eplb(placement).phy2log.tolist()}
    path.write_text(json.dumps(content), encoding="utf-8")


def read_sglang(
    path: Path, num_instances: int, num_experts: int | None = None, epoch: int = 0
) -> Placement:
    """The placement in a file made for `--init-expert-location`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    if not isinstance(content, dict) or list(content) != [SGLANG_KEY]:
        found = list(content) if isinstance(content, dict) else type(content).__name__
        raise ConfigError(f"{path} must hold {SGLANG_KEY!r} and nothing else, found {found}")
    try:
        table = np.array(content[SGLANG_KEY])
    except ValueError as error:
        raise ConfigError(f"{SGLANG_KEY} in {path} has rows of different lengths") from error
    return from_eplb(table, num_instances, num_experts, epoch)


def _complete(phy2log: NDArray[np.int64], num_experts: int) -> EplbTensors:
    counts = np.array([np.bincount(row, minlength=num_experts) for row in phy2log], np.int64)
    log2phy = np.full((*counts.shape, int(counts.max())), -1, np.int64)
    for layer, row in enumerate(phy2log.tolist()):
        seen = [0] * num_experts
        for physical, expert in enumerate(row):
            log2phy[layer, expert, seen[expert]] = physical
            seen[expert] += 1
    return EplbTensors(phy2log, log2phy, counts)


def _as_numpy(array: ArrayLike | Any) -> NDArray[Any]:
    if hasattr(array, "detach"):  # a torch tensor, on any device
        array = array.detach().cpu().numpy()
    return np.asarray(array)

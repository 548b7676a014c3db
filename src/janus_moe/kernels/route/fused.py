"""CPU kernel: the gate's matrix product and the choice in one call.

Of equal scores the lower expert id goes first.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from janus_moe.kernels.cpu.arrays import elements, floats
from janus_moe.kernels.cpu.jit import helper, kernel, num_workers, parallel_region
from janus_moe.kernels.cpu.math import exp
from janus_moe.kernels.cpu.rows import new_counters
from janus_moe.kernels.linear.streaming import project_units
from janus_moe.kernels.route.reference import NORMALIZER_EPS
from janus_moe.spec import RouterSpec

_NORMALIZER_EPS = np.float32(NORMALIZER_EPS)
_NO_BIAS = np.empty(0, np.float32)
_LOWEST = np.float32(-np.inf)


def route_fused(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, router: RouterSpec
) -> tuple[Tensor, Tensor]:
    """Contract of `route` for a contiguous float32 weight on the CPU and at least one token."""
    tokens = hidden.shape[0]
    ids = np.empty((tokens, router.top_k), np.int32)
    weights = np.empty((tokens, router.top_k), np.float32)
    arrays = (
        floats(hidden),
        elements(weight),
        _NO_BIAS if bias is None else elements(bias),
        (
            router.scoring == "softmax",
            router.normalize,
            np.float32(router.scaling_factor),
            router.num_groups,
            router.top_groups,
            1 if router.group_score == "max" else 2,
        ),
        ids,
        weights,
    )
    # Waking a thread takes some 60 us, in which one reads a megabyte or multiplies 4 million times.
    workers = num_workers(max(weight.numel() // 2, tokens * weight.numel() // 16))
    if workers == 1:
        _run_alone(*arrays, workers)
    else:
        with parallel_region():
            _run(*arrays, workers)
    return torch.from_numpy(ids), torch.from_numpy(weights)


@kernel
def _run(
    hidden: Any, weight: Any, bias: Any, rule: Any, ids: Any, weights: Any, workers: int
) -> None:
    logits = np.empty((hidden.shape[0], weight.shape[0]), np.float32)
    counter = new_counters(1)
    for _ in numba.prange(workers):
        project_units(hidden, weight, logits, counter, workers)
    share = (hidden.shape[0] + workers - 1) // workers
    for worker in numba.prange(workers):
        own = slice(worker * share, (worker + 1) * share)
        _choose_all(logits[own], bias, rule, ids[own], weights[own])


@helper
def _run_alone(
    hidden: Any, weight: Any, bias: Any, rule: Any, ids: Any, weights: Any, workers: int
) -> None:
    """`_run` for one worker, without the start of a parallel loop."""
    logits = np.empty((hidden.shape[0], weight.shape[0]), np.float32)
    project_units(hidden, weight, logits, new_counters(1), workers)
    _choose_all(logits, bias, rule, ids, weights)


@helper
def _choose_all(logits: Any, bias: Any, rule: Any, ids: Any, weights: Any) -> None:
    for token in range(logits.shape[0]):
        _choose(logits[token], bias, rule, ids[token], weights[token])


@helper
def _choose(logits: Any, bias: Any, rule: Any, ids: Any, weights: Any) -> None:
    """One token. rule: softmax or sigmoid, normalize, scaling factor, groups, groups kept, best
    experts whose scores are a group's score."""
    softmax, normalize, factor, num_groups, top_groups, best = rule
    scores = np.empty(logits.size, np.float32)
    _score(logits, softmax, scores)
    choice = np.empty(logits.size, np.float32)
    for expert in range(logits.size):
        choice[expert] = scores[expert] + (bias[expert] if bias.size > 0 else np.float32(0))
    if num_groups > 1:
        _keep_best_groups(choice, num_groups, top_groups, best)
    elif softmax and bias.size == 0:  # the same order, without the rounding of the scores
        for expert in range(logits.size):  # `choice[:] =` compiles numba's strings, for an error
            choice[expert] = logits[expert]
    _best(choice, ids)
    total = np.float32(0)
    for k in range(ids.size):
        weights[k] = scores[ids[k]]
        total += weights[k]
    divisor = total + _NORMALIZER_EPS if normalize else np.float32(1)
    for k in range(ids.size):
        weights[k] *= factor / divisor


@helper
def _score(logits: Any, softmax: bool, scores: Any) -> None:
    if not softmax:
        for i in range(logits.size):
            scores[i] = np.float32(1) / (np.float32(1) + exp(-logits[i]))
        return
    peak = logits[0]
    for i in range(logits.size):
        peak = max(peak, logits[i])
    for i in range(logits.size):
        scores[i] = exp(logits[i] - peak)
    total = np.float32(0)
    for i in range(logits.size):
        total += scores[i]
    for i in range(logits.size):
        scores[i] /= total


@helper
def _best(values: Any, ids: Any) -> None:
    """ids: of the largest values, in descending order."""
    found = 0
    for i in range(values.size):
        if found == ids.size and not values[i] > values[ids[found - 1]]:
            continue
        place = min(found, ids.size - 1)
        while place > 0 and values[i] > values[ids[place - 1]]:
            ids[place] = ids[place - 1]
            place -= 1
        ids[place] = i
        found = min(found + 1, ids.size)


@helper
def _contains(ids: Any, count: int, wanted: int) -> bool:
    found = False
    for i in range(count):
        found |= ids[i] == wanted
    return found


@helper
def _keep_best_groups(choice: Any, num_groups: int, top_groups: int, best: int) -> None:
    """-inf for all experts outside the best groups."""
    size = choice.size // num_groups
    group_scores = np.empty(num_groups, np.float32)
    members = np.empty(min(best, size), np.int32)
    for group in range(num_groups):
        own = choice[group * size : (group + 1) * size]
        _best(own, members)
        group_scores[group] = np.float32(0)
        for member in members:
            group_scores[group] += own[member]
    kept = np.empty(top_groups, np.int32)
    _best(group_scores, kept)
    for group in range(num_groups):
        if not _contains(kept, kept.size, group):
            choice[group * size : (group + 1) * size] = _LOWEST

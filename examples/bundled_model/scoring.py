"""Held-out scores of the bundled model: bits per byte, general compressors, skew of the routing.

Does not know how the model was trained, nor how the numbers are shown.
"""

import gzip
import lzma
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from examples.bundled_model.corpus import SourceFile
from examples.bundled_model.network import Network
from torch import Tensor
from torch.nn import functional as F

TOKENS_PER_FORWARD = 8192


@dataclass(frozen=True)
class Scores:
    """Of every token of the files, each predicted once.

    total_bits: information content of the files under the model.
    routes: per layer [tokens, k] int64, the experts that each scored position's input went to.
    """

    total_bits: float
    num_tokens: int
    routes: list[Tensor]


def _windows(num_predicted: int, window: int, stride: int) -> list[tuple[int, int]]:
    """(start, first scored target) of windows that cover targets `0 .. num_predicted` once each.

    Every window but the first starts so that its first scored target has at least
    `window - stride` tokens of context; the last ends with the file.
    """
    windows = [(0, 0)]
    covered = min(window, num_predicted)
    while covered < num_predicted:
        end = min(covered + stride, num_predicted)
        windows.append((end - window, covered))
        covered = end
    return windows


@torch.inference_mode()
def score_files(
    network: Network,
    files: Sequence[npt.NDArray[np.int64]],
    window: int = 1024,
    stride: int = 512,
) -> Scores:
    """files: per file [end-of-text, first token, ..., last token]; each file stands alone."""
    pieces: list[tuple[Tensor, int, int]] = []  # tokens, first scored target, number of targets
    for file in files:
        tokens = torch.from_numpy(file)
        for start, first in _windows(len(file) - 1, window, stride):
            piece = tokens[start : start + window + 1]
            pieces.append((piece, first - start, len(piece) - 1))
    pieces.sort(key=lambda piece: piece[2])  # like lengths together: little filling up
    total_nats, num_tokens = 0.0, 0
    routes: list[list[Tensor]] = [[] for _ in network.layers]
    batch_size = max(1, TOKENS_PER_FORWARD // window)
    for begin in range(0, len(pieces), batch_size):
        batch = pieces[begin : begin + batch_size]
        length = max(num_targets for _, _, num_targets in batch)
        tokens = torch.zeros(len(batch), length + 1, dtype=torch.int64)
        scored = torch.zeros(len(batch), length, dtype=torch.bool)
        for row, (piece, first, num_targets) in enumerate(batch):
            tokens[row, : len(piece)] = piece
            scored[row, first:num_targets] = True
        hidden, _, batch_routes = network.hidden_states(tokens[:, :-1])
        targets = tokens[:, 1:][scored]
        for part, target in zip(
            torch.split(hidden[scored], 1024), torch.split(targets, 1024), strict=True
        ):
            logits = F.linear(part, network.embedding)
            total_nats += float(F.cross_entropy(logits, target, reduction="sum"))
        num_tokens += len(targets)
        for layer_routes, expert_ids in zip(routes, batch_routes, strict=True):
            layer_routes.append(expert_ids[scored.flatten()])
    return Scores(total_nats / math.log(2), num_tokens, [torch.cat(layer) for layer in routes])


def compressed_sizes(
    files: Sequence[SourceFile], train_files: Sequence[SourceFile]
) -> dict[str, int]:
    """Bytes of the files under `gzip -9` and `xz -9`: each alone and summed, and all joined.

    The last figure lets xz see what the model saw: by how much the joined files lengthen the
    compressed training text (which its 64 MiB window holds whole).
    """
    texts = [file.text.encode("utf-8") for file in files]
    joined = b"".join(texts)
    seen = b"".join(file.text.encode("utf-8") for file in train_files)
    xz_seen = len(lzma.compress(seen, preset=9))
    return {
        "gzip_per_file": sum(len(gzip.compress(text, 9)) for text in texts),
        "gzip_concatenated": len(gzip.compress(joined, 9)),
        "xz_per_file": sum(len(lzma.compress(text, preset=9)) for text in texts),
        "xz_concatenated": len(lzma.compress(joined, preset=9)),
        "xz_after_training_text": len(lzma.compress(seen + joined, preset=9)) - xz_seen,
    }


def routing_skew(
    routes: Sequence[Tensor], num_experts: int, batch_sizes: Sequence[int], num_draws: int = 400
) -> list[dict[str, Any]]:
    """Per layer, how uneven the routing is.

    routes: per layer [tokens, k]. A batch of B is B positions drawn at random over all files, as in
    one decode step of B unrelated requests; the uniform figure is `E (1 - (1 - k / E) ** B)`.
    """
    random = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for number, expert_ids in enumerate(routes):
        num_tokens, k = expert_ids.shape
        loads = torch.bincount(expert_ids.flatten(), minlength=num_experts).double()
        busiest = loads.sort(descending=True).values[: num_experts // 4]
        distinct: dict[str, float] = {}
        uniform: dict[str, float] = {}
        for batch_size in batch_sizes:
            draws = torch.from_numpy(random.integers(0, num_tokens, (num_draws, batch_size)))
            active = torch.zeros(num_draws, num_experts, dtype=torch.bool)
            active.scatter_(1, expert_ids[draws].flatten(1), True)
            distinct[str(batch_size)] = float(active.sum(1).double().mean())
            uniform[str(batch_size)] = num_experts * (1 - (1 - k / num_experts) ** batch_size)
        rows.append(
            {
                "layer": number,
                "max_over_mean_load": float(loads.max() / loads.mean()),
                "min_over_mean_load": float(loads.min() / loads.mean()),
                "share_of_busiest_quarter": float(busiest.sum() / loads.sum()),
                "mean_distinct_experts": distinct,
                "mean_distinct_experts_if_uniform": uniform,
            }
        )
    return rows

"""In float32 on a CPU a token's numbers have the same bits, whoever shares its step, however its
sequence was cut into steps, and whichever expert instances and slots its experts have.

Logits and cached rows of whole models are compared with `==`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tests.checkpoints import make_checkpoint
from tests.model.runner import BLOCK_SIZE, Runner
from torch import Tensor

PROMPT = tuple((7 * i) % 61 + 3 for i in range(40))


@pytest.fixture(scope="module", params=["qwen3_moe", "deepseek_v2", "deepseek_v3"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model"), request.param)


def cut(runner: Runner, name: str, sizes: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
    """Logits of every token of PROMPT, computed in steps of these sizes, and its cached rows."""
    parts, first = [], 0
    for size in sizes:
        chunks: dict[str, Sequence[int]] = {name: PROMPT[first : first + size]}
        parts.append(runner.step(chunks)[name])
        first += size
    assert first == len(PROMPT)
    blocks = torch.tensor(runner._blocks[name])
    rows = [
        cache[blocks].flatten(0, 1)[: len(PROMPT)]
        for layer in runner.cache.layers
        for cache in layer
    ]
    assert rows[0].shape[0] == len(PROMPT) <= len(blocks) * BLOCK_SIZE
    return torch.cat(parts), rows


def test_computing_a_sequence_again_in_other_chunks_writes_what_decode_wrote(folder: Path) -> None:
    runner = Runner(folder, "float32")
    with torch.inference_mode():
        decoded, rows = cut(runner, "decoded", [12, *[1] * 28])
        for sizes in ([40], [9, 31], [1, 8, 17, 14]):
            again, rows_again = cut(runner, f"again {sizes}", sizes)
            assert torch.equal(again, decoded)
            assert all(torch.equal(a, b) for a, b in zip(rows, rows_again, strict=True))


def test_logits_do_not_depend_on_how_many_expert_instances_there_are(folder: Path) -> None:
    with torch.inference_mode():
        want, _ = cut(Runner(folder, "float32"), "one", [30, *[1] * 10])
        for num_instances in (2, 3):
            got, _ = cut(Runner(folder, "float32", num_instances), "several", [30, *[1] * 10])
            assert torch.equal(got, want)


def test_a_sequence_does_not_depend_on_those_beside_it(folder: Path) -> None:
    runner = Runner(folder, "float32")
    with torch.inference_mode():
        alone = runner.step({"alone": PROMPT})["alone"]
        others: dict[str, Sequence[int]] = {"x": PROMPT[5:], "beside": PROMPT, "y": PROMPT[:1]}
        assert torch.equal(runner.step(others)["beside"], alone)

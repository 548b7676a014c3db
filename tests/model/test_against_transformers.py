"""Claim: every architecture computes what transformers computes, however the work is cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.checkpoints import make_checkpoint
from tests.model.runner import Runner, reference_logits
from torch import Tensor

YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 32,
    "beta_slow": 1,
}
DEEPSEEK_YARN = YARN | {"mscale": 0.707, "mscale_all_dim": 0.9}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_odd_sizes": ("qwen3_moe", {}),
    "qwen3_plain_probabilities_tied": (
        "qwen3_moe",
        {"norm_topk_prob": False, "tie_word_embeddings": True},
    ),
    "qwen3_dense_layers_bias": ("qwen3_moe", {"mlp_only_layers": [1], "attention_bias": True}),
    "qwen3_every_second_layer": ("qwen3_moe", {"decoder_sparse_step": 2}),
    "qwen3_yarn": ("qwen3_moe", {"rope_parameters": YARN}),
    "qwen3_linear": (
        "qwen3_moe",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0}},
    ),
    "deepseek_v2_lite_greedy": ("deepseek_v2", {"q_lora_rank": None}),
    "deepseek_v2_grouped_yarn": (
        "deepseek_v2",
        {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2,
         "routed_scaling_factor": 4.0, "rope_parameters": DEEPSEEK_YARN},
    ),
    "deepseek_v2_bias": ("deepseek_v2", {"q_lora_rank": None, "attention_bias": True}),
    "deepseek_v3_grouped": ("deepseek_v3", {}),
    "deepseek_v3_yarn_bias": (
        "deepseek_v3",
        {"rope_parameters": DEEPSEEK_YARN, "attention_bias": True},
    ),
    "deepseek_v3_odd_widths": (
        "deepseek_v3",
        {"q_lora_rank": None, "num_attention_heads": 3, "num_key_value_heads": 3,
         "qk_nope_head_dim": 7, "kv_lora_rank": 17},
    ),
    "deepseek_v3_halves_one_group": (
        "deepseek_v3",
        {"rope_interleave": False, "n_group": 1, "topk_group": 1, "norm_topk_prob": False},
    ),
}  # fmt: skip
PROMPTS = {
    name: torch.randint(0, 257, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    for name, length in (("long", 37), ("short", 9), ("single", 7))
}
DECODED = 6  # trailing tokens of each sequence that are fed one by one


@pytest.fixture(scope="module", params=CASES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family, overrides = CASES[request.param]
    return make_checkpoint(tmp_path_factory.mktemp("model"), family, **overrides)


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, Tensor]:
    """transformers' float32 logits of every token of PROMPTS."""
    return {name: reference_logits(folder, ids, torch.float32) for name, ids in PROMPTS.items()}


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 2e-5) -> None:
    """Largest difference, relative to the largest expected value."""
    assert actual.shape == expected.shape
    error = float((actual - expected).abs().max() / expected.abs().max())
    assert error < tolerance, f"relative error {error:.2e}"


def test_prefill_and_decode_vs_transformers(folder: Path, expected: dict[str, Tensor]) -> None:
    runner = Runner(folder)
    prefill = runner.step({name: ids[:-DECODED] for name, ids in PROMPTS.items()})
    for name, logits in prefill.items():
        assert_close(logits, expected[name][:-DECODED])
    for place in range(-DECODED, 0):
        decode = runner.step({name: [ids[place]] for name, ids in PROMPTS.items()})
        for name, logits in decode.items():
            assert_close(logits[0], expected[name][place])


def test_chunked_prefill_beside_decode(folder: Path, expected: dict[str, Tensor]) -> None:
    runner = Runner(folder)
    runner.step({"short": PROMPTS["short"][:-2]})
    ids = PROMPTS["long"]
    first = runner.step({"short": [PROMPTS["short"][-2]], "long": ids[:13]})
    second = runner.step({"long": ids[13:], "short": [PROMPTS["short"][-1]]})
    assert_close(torch.cat((first["long"], second["long"])), expected["long"])
    assert_close(torch.cat((first["short"], second["short"])), expected["short"][-2:])


def test_split_experts_sum_to_the_whole(folder: Path, expected: dict[str, Tensor]) -> None:
    logits = Runner(folder, num_instances=3).step({"long": PROMPTS["long"]})["long"]
    assert_close(logits, expected["long"])


def test_bfloat16_stays_near_float32(folder: Path, expected: dict[str, Tensor]) -> None:
    """A token routed differently is far off, so this claims the typical token: median error of
    the logits below 4% of the largest."""
    logits = Runner(folder, "bfloat16").step({"long": PROMPTS["long"]})["long"]
    largest = expected["long"].abs().max()
    errors = (logits - expected["long"]).abs().amax(dim=-1) / largest
    assert torch.isfinite(logits).all()
    assert float(errors.median()) < 0.04

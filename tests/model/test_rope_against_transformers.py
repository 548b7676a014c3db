"""Claim: rotary frequencies are those of transformers, of every supported kind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from transformers import Qwen3MoeConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from janus_moe.families.config import Config
from janus_moe.families.rope import ROPE_TYPES, rope_spec

YARN = {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
CASES: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 3.0},
    "proportional": {"rope_type": "proportional", "partial_rotary_factor": 0.5},
    "llama3": LLAMA3,
    "yarn": YARN,
    "yarn_deepseek": YARN | {"mscale": 0.707, "mscale_all_dim": 0.9, "beta_fast": 16},
    "yarn_untruncated": YARN | {"truncate": False, "attention_factor": 1.25},
    "yarn_without_factor": YARN | {"factor": None},
}


@pytest.mark.parametrize("theta", [5000.0, 10000.0, 150000.0, 1e6, 1e7])
@pytest.mark.parametrize("dim", [8, 64, 128])
@pytest.mark.parametrize("case", CASES)
def test_frequencies_are_those_of_transformers(case: str, dim: int, theta: float) -> None:
    """Within 4 units in the last place: torch does not round all powers correctly."""
    parameters = CASES[case] | {"rope_theta": theta}
    raw = {"head_dim": dim, "max_position_embeddings": 163840, "rope_parameters": parameters}
    reference = Qwen3MoeConfig(**(raw | {"rope_parameters": dict(parameters)}))
    tensor, factor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](reference)
    rope = rope_spec(Config(raw), dim, "halves")
    np.testing.assert_allclose(rope.inv_freq, tensor.numpy(), rtol=5e-7, atol=0)
    assert rope.attention_factor == factor


def test_every_kind_is_compared() -> None:
    """The default kind is compared through whole models."""
    assert {case["rope_type"] for case in CASES.values()} | {"default"} == set(ROPE_TYPES)

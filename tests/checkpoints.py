"""Small random checkpoints, written by transformers itself, of every supported architecture.

    folder = make_checkpoint(tmp_path / "model", "deepseek_v3", n_group=2, topk_group=1)
    write_tokenizer(folder)

Weights are large enough for routing and logits to differ clearly from token to token.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

NUM_BYTES = 256
EOS_TOKEN_ID = NUM_BYTES
VOCAB_SIZE = NUM_BYTES + 1
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "eos_token_id": EOS_TOKEN_ID,
    "bos_token_id": None,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
}
_DEEPSEEK = _COMMON | {
    "hidden_size": 48,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 20,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
    "moe_intermediate_size": 20,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "first_k_dense_replace": 1,
}
FAMILY_DEFAULTS: dict[str, dict[str, Any]] = {
    "qwen3_moe": _COMMON
    | {
        "hidden_size": 40,
        "intermediate_size": 44,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 10,
        "moe_intermediate_size": 20,
        "num_experts": 5,
        "num_experts_per_tok": 3,
        "norm_topk_prob": True,
    },
    "deepseek_v2": _DEEPSEEK | {"n_shared_experts": 2, "routed_scaling_factor": 1.0},
    "deepseek_v3": _DEEPSEEK
    | {"n_shared_experts": 1, "routed_scaling_factor": 2.5, "n_group": 4, "topk_group": 2},
}


def make_checkpoint(
    folder: Path,
    family: str,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "1GB",
    **overrides: Any,
) -> Path:
    """Writes a random checkpoint of `family` to `folder` and returns the folder.

    overrides: keys of the architecture's config, on top of FAMILY_DEFAULTS.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(family, **(FAMILY_DEFAULTS[family] | overrides))
    with _quiet():
        model = AutoModelForCausalLM.from_config(config)
        randomize(model, seed)
        model.to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


@torch.no_grad()
def randomize(model: nn.Module, seed: int) -> None:
    """Replaces all weights, and the routers' correction biases, by random ones."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if weight.dim() == 1:
            weight.copy_(0.2 * noise if name.endswith("bias") else 1 + 0.2 * noise)
        else:
            weight.copy_(noise * _std(name, weight.shape[-1]))
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.copy_(0.5 * torch.randn(buffer.shape, generator=generator))


def _std(name: str, fan_in: int) -> float:
    if "embed_tokens" in name:
        return 1.0
    return (2.0 if name.endswith("gate.weight") else 1.2) / math.sqrt(fan_in)


def write_tokenizer(folder: Path) -> None:
    """Adds a byte-level tokenizer: id = byte value, and one end-of-sequence token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {character: byte for byte, character in _byte_characters().items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")
    fast.chat_template = CHAT_TEMPLATE
    assert fast.eos_token_id == EOS_TOKEN_ID
    fast.save_pretrained(folder)


def _byte_characters() -> dict[int, str]:
    """The printable character that byte-level tokenizers write for each byte (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(NUM_BYTES) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(NUM_BYTES + place) for place, byte in enumerate(others)
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars and warnings about deliberate oddities."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)

"""A synthetic checkpoint whose routing depends on the topic, for benchmarks of drift.

A Qwen3-MoE that transformers writes, with weights that are made and not trained. Its vocabulary has
two topics of four sub-topics each. An embedding is the sum of a direction of its topic, one of its
sub-topic and noise, all equally long; attention and experts add little to it. Router weights read
these directions: in every layer each topic has favourite experts of its own (standard deviation of
its log weights 3), each sub-topic some more (1), and noise stands for what differs between tokens
(1.3, as of a Gumbel variable). The LM head puts tokens of the same topic far above the other's, so
that continuations stay in the topic, and reads the noise to choose among them.

How much real topics differ is another question; `benchmarks.recorded_routing` has a trained model.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

NUM_TOPICS, SUB_TOPICS = 2, 4
TOPIC_SPREAD, SUB_TOPIC_SPREAD, TOKEN_SPREAD = 3.0, 1.0, 1.3
SAME_TOPIC = 20.0
"""Logit of tokens of the topic over those of the other."""
HIDDEN, VOCABULARY, NUM_EXPERTS = 256, 4096, 64
CONFIG: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": HIDDEN,
    "num_hidden_layers": 4,
    "num_experts": NUM_EXPERTS,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 1024,
    "norm_topk_prob": True,
    "tie_word_embeddings": False,
}


def make_checkpoint(folder: Path, seed: int = 0) -> Path:
    """Writes the model in float32; returns the folder."""
    from transformers import AutoModelForCausalLM, Qwen3MoeConfig

    model = AutoModelForCausalLM.from_config(Qwen3MoeConfig(**CONFIG), dtype=torch.float32)
    rng = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(HIDDEN, HIDDEN, generator=rng)).Q
    topics, rest = directions[:NUM_TOPICS], directions[NUM_TOPICS:]
    subs, noise = rest[: NUM_TOPICS * SUB_TOPICS], rest[NUM_TOPICS * SUB_TOPICS :]
    topic, sub = token_topics()
    own = torch.nn.functional.normalize(torch.randn(VOCABULARY, len(noise), generator=rng)) @ noise
    part = math.sqrt(HIDDEN / 3)  # length of each of the three parts, before and after a norm
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("embed_tokens.weight"):
                weight.copy_(part * (topics[topic] + subs[sub] + own))
            elif name.endswith("lm_head.weight"):
                weight.copy_(SAME_TOPIC / part * topics[topic] + _reading(noise, VOCABULARY, rng))
            elif name.endswith("mlp.gate.weight"):
                router = TOPIC_SPREAD * _reading(topics, NUM_EXPERTS, rng)
                router += SUB_TOPIC_SPREAD * _reading(subs, NUM_EXPERTS, rng)
                weight.copy_(router + TOKEN_SPREAD * _reading(noise, NUM_EXPERTS, rng))
            elif weight.dim() > 1:
                small = 0.1 if name.endswith(("o_proj.weight", "down_proj")) else 1.0
                random = torch.randn(weight.shape, generator=rng)
                weight.copy_(small / math.sqrt(weight.shape[-1]) * random)
    model.save_pretrained(folder)
    return folder


def _reading(directions: Tensor, rows: int, rng: torch.Generator) -> Tensor:
    """[rows, hidden] weights that turn each part of an embedding into standard normal numbers."""
    return torch.randn(rows, len(directions), generator=rng) @ directions / math.sqrt(HIDDEN / 3)


def token_topics() -> tuple[Tensor, Tensor]:
    """[vocabulary] topic, and sub-topic counted over all topics, of each token."""
    sub = torch.arange(VOCABULARY) % (NUM_TOPICS * SUB_TOPICS)
    return sub // SUB_TOPICS, sub


def prompt(topic: int, length: int, seed: int) -> list[int]:
    """Random tokens of one topic."""
    ids = np.flatnonzero(token_topics()[0].numpy() == topic)
    chosen: list[int] = np.random.default_rng((topic, seed)).choice(ids, length).tolist()
    return chosen

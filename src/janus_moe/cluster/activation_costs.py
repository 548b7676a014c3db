"""What an activated expert and one of its tokens cost, for the token-aware activation policy.

Measured once, here, before anything is started, and handed to all expert instances as whole
numbers: instances that measured for themselves would choose different replicas.
"""

from __future__ import annotations

import time

import msgspec
import numba
import torch

from janus_moe.config import EngineConfig
from janus_moe.errors import ConfigError
from janus_moe.experts.scheduling import Rule
from janus_moe.kernels.grouped_experts import grouped_experts
from janus_moe.policy.activation import LayerCost
from janus_moe.spec import ModelSpec
from janus_moe.torch_dtypes import TORCH_DTYPES

WEIGHT_BYTES = 64 * 2**20  # of the experts that are measured: more than caches hold
MOST_EXPERTS = 64
TOKENS_PER_EXPERT = 32
REPEATS = 5


def activation_rule(config: EngineConfig) -> Rule:
    """What expert instances schedule by; the costs must be resolved."""
    if config.activation_policy != "token-aware":
        return config.activation_policy
    expert_ns, token_ns = config.activation_expert_ns, config.activation_token_ns
    if expert_ns == "auto" or token_ns == "auto":
        raise ValueError("the costs of token-aware scheduling were not resolved")
    return LayerCost(expert_ns=expert_ns, token_ns=token_ns)


def resolve_costs(
    config: EngineConfig, spec: ModelSpec, num_threads: int
) -> tuple[EngineConfig, str | None]:
    """The same settings without "auto" costs where they matter, and what was measured if so.

    num_threads: compute threads of an expert instance.
    """
    given = (config.activation_expert_ns, config.activation_token_ns)
    if config.activation_policy != "token-aware" or "auto" not in given:
        return config, None
    if config.device != "cpu":
        raise ConfigError(
            f"costs are measured on a CPU only; with --device {config.device} give "
            "--activation-expert-ns and --activation-token-ns"
        )
    measured = measure(spec, num_threads)
    pairs = zip(given, (measured.expert_ns, measured.token_ns), strict=True)
    expert_ns, token_ns = (own if value == "auto" else value for value, own in pairs)
    resolved = msgspec.structs.replace(
        config, activation_expert_ns=expert_ns, activation_token_ns=token_ns
    )
    return resolved, f"an activated expert costs {expert_ns} ns, a token of one {token_ns} ns"


def measure(spec: ModelSpec, num_threads: int) -> LayerCost:
    """From one token per expert and from many, with experts of the model's shape; about a second.

    The threads of this process are as before afterwards.
    """
    before = torch.get_num_threads(), numba.get_num_threads()
    torch.set_num_threads(num_threads)
    numba.set_num_threads(min(num_threads, numba.config.NUMBA_NUM_THREADS))
    try:
        experts = min(max(2, WEIGHT_BYTES // spec.expert_bytes), MOST_EXPERTS)
        one, many = (_seconds(spec, experts, tokens) for tokens in (1, TOKENS_PER_EXPERT))
    finally:
        numba.set_num_threads(before[1])
        torch.set_num_threads(before[0])  # last: numba may set the OpenMP threads of both
    token_s = max(0.0, many - one) / (experts * (TOKENS_PER_EXPERT - 1))
    expert_s = max(0.0, one / experts - token_s)
    return LayerCost(expert_ns=round(1e9 * expert_s), token_ns=round(1e9 * token_s))


def _seconds(spec: ModelSpec, num_experts: int, tokens_per_expert: int) -> float:
    """Of one layer in which each of the experts gets so many tokens; the fastest of some runs."""
    dtype, width, size = TORCH_DTYPES[spec.dtype], spec.moe.intermediate_size, spec.hidden_size
    gate_up = torch.full((num_experts, 2 * width, size), 0.01, dtype=dtype)
    down = torch.full((num_experts, size, width), 0.01, dtype=dtype)
    slot_ids = torch.arange(num_experts, dtype=torch.int32).repeat(tokens_per_expert)[:, None]
    hidden = torch.ones(len(slot_ids), size, dtype=dtype)
    weights = torch.ones(len(slot_ids), 1)
    fastest = float("inf")
    with torch.inference_mode():
        for _ in range(1 + REPEATS):  # the first one compiles
            start = time.perf_counter()
            grouped_experts(hidden, gate_up, down, slot_ids, weights)
            fastest = min(fastest, time.perf_counter() - start)
    return fastest

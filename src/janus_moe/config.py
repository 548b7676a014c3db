"""Settings of a run: parsed once, immutable, passed by argument.

Field names are the CLI's flag names with underscores; a YAML file uses the CLI's names. Unknown
keys raise. "auto" is resolved once by `control`, which says what it chose.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from janus_moe.errors import ConfigError
from janus_moe.spec import Dtype, PoolShape

TransportName = Literal["auto", "loopback", "shm"]


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a model is served, apart from HTTP.

    model: local folder, Hugging Face id present in the local cache, or "bundled".
    max_num_seqs, max_num_batched_tokens: per attention instance and step.
    kv_cache_memory_bytes: per attention instance; None takes what `max_num_seqs` full contexts
        need, at most a share of the free memory.
    redundant_experts: extra expert replicas per layer over the whole expert pool.
    threads: compute threads of each worker; 0 divides the cores among the instances of a pool.
    exchange_timeout: seconds a pool waits for the other before it names the peer and fails.
    """

    model: str = "bundled"
    tokenizer: str | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: Literal["cpu", "cuda"] = "cpu"
    seed: int = 0
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    block_size: int = 16
    kv_cache_memory_bytes: int | None = None
    enable_prefix_caching: bool = True
    attention_instances: int = 1
    expert_instances: int = 1
    redundant_experts: int | Literal["auto"] = "auto"
    activation_policy: Literal["exact", "aebs"] = "exact"
    transport: TransportName = "auto"
    threads: int = 0
    exchange_timeout: float = 60.0
    startup_timeout: float = 1800.0
    max_queue: int = 4096

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "block_size", "max_queue"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("exchange_timeout", "startup_timeout"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "above 0 seconds")
        _require(self.threads >= 0, "threads", self.threads, "0 (automatic) or more")
        if isinstance(self.redundant_experts, int):
            _require(
                self.redundant_experts >= 0, "redundant_experts", self.redundant_experts, ">= 0"
            )
        if self.max_model_len is not None:
            _require(self.max_model_len >= 1, "max_model_len", self.max_model_len, "at least 1")
        if self.device == "cuda" and self.transport not in ("auto", "loopback"):
            raise ConfigError(
                f"--device cuda runs all instances on one GPU in one process, so --transport "
                f"must be loopback (or auto), not {self.transport}"
            )
        _ = self.shape

    @property
    def shape(self) -> PoolShape:
        return PoolShape(attention=self.attention_instances, expert=self.expert_instances)


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The HTTP side. Limits bound what one request can ask for.

    max_completions: largest `n`; max_logprobs: largest number of alternatives per token.
    shutdown_timeout: seconds that in-flight requests get to finish after SIGTERM.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    served_model_name: str | None = None
    chat_template: str | None = None
    disable_fastapi_docs: bool = False
    shutdown_timeout: float = 30.0
    max_body_bytes: int = 16 * 1024 * 1024
    max_completions: int = 128
    max_logprobs: int = 20
    max_stop_strings: int = 16


def _require(condition: bool, name: str, value: object, expected: str) -> None:
    if not condition:
        raise ConfigError(f"--{name.replace('_', '-')} must be {expected}, got {value}")


def parse_human_int(text: str) -> int:
    """`32K` -> 32768 with upper-case binary suffixes, `32k` -> 32000 with lower-case ones."""
    binary, decimal = {"K": 2**10, "M": 2**20, "G": 2**30}, {"k": 10**3, "m": 10**6, "g": 10**9}
    factor = (binary | decimal).get(text[-1:], 1)
    digits = text[:-1] if factor > 1 else text
    try:
        return int(float(digits) * factor) if factor > 1 else int(digits)
    except ValueError:
        raise ConfigError(f"{text!r} is not a number; write e.g. 4096, 4K or 1.5G") from None


def with_changes(config: EngineConfig, **changes: Any) -> EngineConfig:
    """A copy with some fields replaced, validated again."""
    return msgspec.structs.replace(config, **changes)


__all__ = [
    "Dtype",
    "EngineConfig",
    "ServerConfig",
    "TransportName",
    "parse_human_int",
    "with_changes",
]

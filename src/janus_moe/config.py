"""Settings of a run: parsed once, immutable, passed by argument.

A field's name is its CLI flag with underscores and its YAML key with dashes or underscores; its
description is its help text. Unknown keys raise. "auto" is resolved once by `cluster`, which says
what it chose.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from janus_moe.errors import ConfigError
from janus_moe.spec import (
    ONE_PROCESS,
    ActivationPolicy,
    ExchangePlanName,
    PoolShape,
    TransportName,
)

TransportSetting = Literal["auto", TransportName]
LONGEST_S = 1e6
MOST_SECONDS = f"at most {LONGEST_S:,.0f} seconds"


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a model is served, apart from HTTP."""

    model: Annotated[
        str,
        Meta(description="local folder, Hugging Face id, or 'bundled'", extra={"positional": True}),
    ] = "bundled"
    tokenizer: Annotated[
        str | None, Meta(description="folder or id of the tokenizer, if not the model's own")
    ] = None
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"],
        Meta(description="weights, activations, KV cache; auto: float32 on CPU, else as stored"),
    ] = "auto"
    device: Annotated[
        Literal["cpu", "cuda"], Meta(description="cuda runs all instances on one GPU (loopback)")
    ] = "cpu"
    attention_instances: Annotated[int, Meta(description="size of the attention pool")] = 1
    expert_instances: Annotated[int, Meta(description="size of the expert pool")] = 1
    redundant_experts: Annotated[
        int | Literal["auto"],
        Meta(description="extra expert replicas per layer in the expert pool; auto: free memory"),
    ] = "auto"
    rebalance_spare_slots: Annotated[
        int | Literal["auto"],
        Meta(description="free slots per layer and expert instance, to move experts; 0: no moves"),
    ] = "auto"
    rebalance_interval: Annotated[
        float, Meta(description="seconds between looks for a better placement; 0: on demand only")
    ] = 0.0
    rebalance_bytes_per_step: Annotated[
        int, Meta(description="weights an expert instance loads per step while it serves")
    ] = 4 * 2**20
    activation_policy: Annotated[
        ActivationPolicy, Meta(description="how activated experts are given to replicas")
    ] = "exact"
    activation_expert_ns: Annotated[
        int | Literal["auto"],
        Meta(description="of token-aware: what an activated expert costs; auto: measured"),
    ] = "auto"
    activation_token_ns: Annotated[
        int | Literal["auto"],
        Meta(description="of token-aware: what one of its tokens costs besides; auto: measured"),
    ] = "auto"
    record_routing: Annotated[
        str | None, Meta(description="file for the routing of all tokens; see docs/scheduling.md")
    ] = None
    record_routing_tokens: Annotated[
        int, Meta(description="recording stops after so many tokens, which bounds its memory")
    ] = 2**18
    transport: Annotated[
        TransportSetting,
        Meta(description="loopback: one process; shm: one host; gloo: TCP; auto: by shape, hosts"),
    ] = "auto"
    exchange: Annotated[
        Literal["auto", ExchangePlanName],
        Meta(description="plan of the messages between hosts; auto: chosen for each batch"),
    ] = "auto"
    exchange_profile: Annotated[
        str | None, Meta(description="file of 'janus profile exchange': what messages cost")
    ] = None
    max_model_len: Annotated[
        int | None, Meta(description="context in tokens, prompt and output; default: the model's")
    ] = None
    max_num_seqs: Annotated[int, Meta(description="sequences per step and attention instance")] = 64
    max_num_batched_tokens: Annotated[
        int, Meta(description="tokens per step and attention instance")
    ] = 2048
    micro_batch_threshold: Annotated[
        int,
        Meta(description="tokens of an instance's step from which its halves ping-pong; 0: never"),
    ] = 0
    block_size: Annotated[int, Meta(description="tokens per KV block")] = 16
    kv_cache_memory_bytes: Annotated[
        int | None, Meta(description="KV cache of each attention instance; default: by free memory")
    ] = None
    prefix_caching: Annotated[
        Literal["on", "off"], Meta(description="reuse the KV of prompts that begin alike")
    ] = "on"
    threads: Annotated[
        int, Meta(description="compute threads per instance; 0 divides the cores by the pool")
    ] = 0
    seed: Annotated[int, Meta(description="seed of requests that bring none; 0: unpredictable")] = 0
    max_queue: Annotated[int, Meta(description="requests held at once before 429")] = 4096
    exchange_timeout: Annotated[
        float, Meta(description="seconds one pool waits for the other before it gives up")
    ] = 60.0
    hang_timeout: Annotated[
        float,
        Meta(description="seconds after which a worker that stands still is lost; 0: never"),
    ] = 60.0
    max_attention_instances: Annotated[
        int,
        Meta(description="most attention instances after a change; 0: twice the start"),
    ] = 0
    max_expert_instances: Annotated[
        int, Meta(description="most expert instances after a change; 0: twice the start")
    ] = 0
    standby_attention: Annotated[
        int, Meta(description="attention instances held ready to replace lost ones")
    ] = 0
    standby_experts: Annotated[
        int, Meta(description="expert instances held ready to replace lost ones")
    ] = 0
    max_restarts: Annotated[
        int, Meta(description="lost instances that are started again within an hour")
    ] = 10
    recovery_timeout: Annotated[
        float, Meta(description="seconds a fault may last before requests get 503")
    ] = 30.0
    startup_timeout: Annotated[
        float, Meta(description="seconds all workers have to load, and then to warm up")
    ] = 1800.0

    def __post_init__(self) -> None:
        positive = ("max_num_seqs", "max_num_batched_tokens", "block_size", "max_queue")
        for name in (*positive, "rebalance_bytes_per_step", "record_routing_tokens"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for pool, at_start in (
            ("attention", self.attention_instances),
            ("expert", self.expert_instances),
        ):
            name = f"max_{pool}_instances"
            most = getattr(self, name)
            possible = most == 0 or most >= at_start
            _require(possible, name, most, f"0 (twice the start) or at least {at_start}")
        for name in ("standby_attention", "standby_experts", "max_restarts"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        _require_64_bits(self)
        for name in ("exchange_timeout", "startup_timeout", "recovery_timeout"):
            value = getattr(self, name)
            _require(0 < value <= LONGEST_S, name, value, f"above 0 and {MOST_SECONDS}")
        hang_timeout = self.hang_timeout
        possible = hang_timeout == 0 or 1 <= hang_timeout <= LONGEST_S
        _require(possible, "hang_timeout", hang_timeout, f"0 (never) or from 1 and {MOST_SECONDS}")
        for name in ("max_model_len", "kv_cache_memory_bytes"):
            value = getattr(self, name)
            _require(value is None or value >= 1, name, value, "at least 1")
        spare = 1 if self.rebalance_spare_slots == "auto" else self.rebalance_spare_slots
        interval = self.rebalance_interval
        _require(spare >= 0, "rebalance_spare_slots", spare, "auto, 0 or more")
        possible = 0 <= interval <= LONGEST_S
        _require(possible, "rebalance_interval", interval, f"0 (off) or more and {MOST_SECONDS}")
        if interval and not spare:
            raise ConfigError(
                f"--rebalance-interval {interval:g} needs a slot to load into; use "
                "--rebalance-spare-slots 1 or more"
            )
        for name in ("activation_expert_ns", "activation_token_ns"):
            value = getattr(self, name)
            possible = value == "auto" or 0 <= value < 2**31
            _require(possible, name, value, "auto, or from 0 to 2^31 - 1 nanoseconds")
        _require(self.threads >= 0, "threads", self.threads, "0 (automatic) or more")
        redundant = 0 if self.redundant_experts == "auto" else self.redundant_experts
        _require(redundant >= 0, "redundant_experts", redundant, "auto, 0 or more")
        threshold = self.micro_batch_threshold
        _require(threshold >= 0, "micro_batch_threshold", threshold, "0 (never) or more")
        if threshold and (self.transport in ONE_PROCESS or self.device == "cuda"):
            raise ConfigError(
                "--micro-batch-threshold lets the pools compute at the same time, which they never "
                "do in one process (--transport loopback, --device cuda); use shm or gloo"
            )
        if threshold and self.record_routing is not None:
            raise ConfigError(
                "--record-routing needs whole steps; leave out --micro-batch-threshold meanwhile"
            )
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                f"--max-num-batched-tokens {self.max_num_batched_tokens} cannot hold one token of "
                f"each of --max-num-seqs {self.max_num_seqs} sequences; raise the first or lower "
                "the second"
            )
        if self.device == "cuda" and self.transport not in ("auto", *ONE_PROCESS):
            raise ConfigError(
                "--device cuda runs all instances on one GPU in one process; "
                f"use --transport loopback (or auto), not {self.transport}"
            )
        _ = self.shape

    @property
    def num_micro_batches(self) -> int:
        """That may be under way at once."""
        return 2 if self.micro_batch_threshold else 1

    @property
    def shape(self) -> PoolShape:
        return PoolShape(attention=self.attention_instances, expert=self.expert_instances)


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The HTTP side. Limits bound what one request can ask for."""

    host: Annotated[str, Meta(description="address to listen on")] = "127.0.0.1"
    port: Annotated[int, Meta(description="port to listen on; 0 takes a free one")] = 8000
    api_key: Annotated[
        str | None, Meta(description="key clients must send as bearer token; or set JANUS_API_KEY")
    ] = None
    served_model_name: Annotated[
        str | None, Meta(description="name in the API; default: the model's")
    ] = None
    chat_template: Annotated[
        str | None, Meta(description="file with a Jinja chat template, if not the tokenizer's own")
    ] = None
    disable_fastapi_docs: Annotated[bool, Meta(description="no /docs and /openapi.json")] = False
    shutdown_timeout: Annotated[
        float, Meta(description="seconds that running requests get after SIGTERM")
    ] = 30.0
    max_body_bytes: Annotated[int, Meta(description="largest request body")] = 16 * 2**20
    max_completions: Annotated[int, Meta(description="largest n of a request")] = 128
    max_logprobs: Annotated[int, Meta(description="most alternatives per token")] = 20
    max_stop_strings: Annotated[int, Meta(description="most stop strings of a request")] = 16

    def __post_init__(self) -> None:
        _require(0 <= self.port <= 65535, "port", self.port, "between 0 and 65535")
        _require_64_bits(self)
        timeout = self.shutdown_timeout
        _require(
            0 <= timeout <= LONGEST_S, "shutdown_timeout", timeout, f"0 or more and {MOST_SECONDS}"
        )
        if self.api_key is not None and not _can_be_sent(self.api_key):
            raise ConfigError(
                "--api-key (or JANUS_API_KEY) must be printable, not empty and without spaces "
                "around it: clients cannot send another one"
            )
        for name in ("max_body_bytes", "max_completions", "max_stop_strings"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        _require(self.max_logprobs >= 0, "max_logprobs", self.max_logprobs, "0 or more")


class ClusterConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which hosts run a service, and how they get in.

    Without `hosts` it is this one alone.
    """

    hosts: Annotated[
        str | None,
        Meta(description="hosts that run instances: a,b or local=1A,b=2E; `local` is this one"),
    ] = None
    cluster_listen: Annotated[
        str | None, Meta(description="ADDRESS:PORT of this host at which the others join")
    ] = None
    cluster_secret_file: Annotated[
        str | None, Meta(description="file with the secret that all hosts share")
    ] = None
    cluster_heartbeat_timeout: Annotated[
        float, Meta(description="seconds of silence after which a host is lost")
    ] = 5.0

    def __post_init__(self) -> None:
        timeout = self.cluster_heartbeat_timeout
        possible = 0.5 <= timeout <= LONGEST_S
        allowed = f"at least 0.5 and {MOST_SECONDS}"
        _require(possible, "cluster_heartbeat_timeout", timeout, allowed)
        given = {
            "--cluster-listen": self.cluster_listen,
            "--cluster-secret-file": self.cluster_secret_file,
        }
        if unused := [flag for flag, value in given.items() if value and not self.hosts]:
            raise ConfigError(f"{' and '.join(unused)} without --hosts; name the hosts, e.g. a,b")


def _require(condition: bool, name: str, value: object, expected: str) -> None:
    if not condition:
        raise ConfigError(f"--{name.replace('_', '-')} must be {expected}, got {value}")


def _require_64_bits(settings: msgspec.Struct) -> None:
    """Whole numbers go into messages and compiled code, which hold no more."""
    for name in settings.__struct_fields__:
        value = getattr(settings, name)
        if isinstance(value, int):
            _require(-(2**63) <= value < 2**63, name, value, "a number of 64 bits")


def _can_be_sent(key: str) -> bool:
    """Whether a header can carry the key."""
    return bool(key) and key.isprintable() and key == key.strip()


def parse_human_int(text: str) -> int:
    """`32K` -> 32768 with upper-case binary suffixes, `32k` -> 32000 with lower-case ones."""
    factors = {"K": 2**10, "M": 2**20, "G": 2**30, "k": 10**3, "m": 10**6, "g": 10**9}
    factor = factors.get(text[-1:])
    try:
        return int(text) if factor is None else round(float(text[:-1]) * factor)
    except (ValueError, OverflowError):
        raise ConfigError(f"{text!r} is not a whole number") from None

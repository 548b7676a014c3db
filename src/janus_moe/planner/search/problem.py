"""What is asked of a planner: load, objective, limits, and how the deployment would work.

Values only; nothing here knows of time or searches.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from janus_moe.errors import ConfigError
from janus_moe.planner.latency.links import Gating
from janus_moe.planner.latency.oracle import Oracle
from janus_moe.planner.search.activation import ActivationSource
from janus_moe.planner.search.memory import MemoryRules
from janus_moe.spec import EXCHANGE_PLANS, ExchangePlanName, ReplicaPolicy

CostObjective = Literal["gpus", "price"]
Prefill = Literal["included", "excluded"]

REDUNDANCIES = (1.0, 1.125, 1.25, 1.5)


@dataclass(frozen=True, slots=True)
class Rate:
    """Output tokens per second that must be served; the batch follows (Little's law)."""

    tokens_per_s: float

    def __post_init__(self) -> None:
        if not 0 < self.tokens_per_s < float("inf"):
            raise ConfigError(
                f"the demand must be above 0 output tokens per second, got {self.tokens_per_s}; "
                "it is requests per second times output tokens per request"
            )


@dataclass(frozen=True, slots=True)
class Concurrency:
    """Requests that are always under way: the batch."""

    requests: float

    def __post_init__(self) -> None:
        if not 1 <= self.requests < float("inf"):
            raise ConfigError(f"the concurrency must be 1 or more requests, got {self.requests}")


@dataclass(frozen=True, slots=True)
class Saturate:
    """As many tokens as the GPUs can serve within the objective."""


ServiceDemand = Rate | Concurrency | Saturate


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLengths:
    """Mean tokens of a request: isl in, osl out."""

    isl: float
    osl: float

    def __post_init__(self) -> None:
        if not (self.isl >= 0 and self.osl >= 1):
            raise ConfigError(
                f"isl must be 0 or more tokens and osl 1 or more, got {self.isl}, {self.osl}"
            )

    @property
    def context(self) -> float:
        """Positions that a sequence holds on average while it is decoded."""
        return self.isl + self.osl / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Batching:
    """What an attention instance puts into a step at most.

    max_sequences: that decode; None means as many as memory holds.
    max_prompt_tokens: chunks of prompts beside them.
    """

    max_sequences: int | None = None
    max_prompt_tokens: int = 2048

    def __post_init__(self) -> None:
        if self.max_sequences is not None and self.max_sequences < 1:
            raise ConfigError(f"a step needs 1 sequence or more, got {self.max_sequences}")
        if self.max_prompt_tokens < 1:
            raise ConfigError(f"a step needs 1 prompt token or more, got {self.max_prompt_tokens}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStyle:
    """How two pools work, and which shapes are tried.

    slots: experts per instance and layer; None means `redundancies` (slots per expert) are tried.
    gpu_step: the sum of both pools is a multiple of it.
    balance: the most by which the busy times of the pools may differ, relative to the longer one,
        unless no other number of attention instances comes closer; None means any.
    max_instances: of either pool.
    """

    policy: ReplicaPolicy = "exact"
    gating: Gating = "egate"
    exchange_plans: tuple[ExchangePlanName, ...] = EXCHANGE_PLANS
    micro_batches: tuple[int, ...] = (1, 2)
    slots: int | None = None
    redundancies: tuple[float, ...] = REDUNDANCIES
    gpu_step: int = 1
    balance: float | None = None
    max_instances: int | None = None

    def __post_init__(self) -> None:
        if self.slots is not None and self.slots < 1:
            raise ConfigError(f"slots per expert instance must be 1 or more, got {self.slots}")
        if not self.redundancies or min(self.redundancies) < 1:
            raise ConfigError(f"slots per expert must be 1 or more, got {self.redundancies}")


@dataclass(frozen=True, slots=True, kw_only=True)
class MonolithicStyle:
    """Expert parallelism without pools: every device has attention and a share of the experts.

    sizes: devices of one copy that are tried.
    attention_tp: devices that share the heads of attention, of which those are tried that divide
        the size and the heads; 1: every device has all of attention (data parallel).
    """

    policy: ReplicaPolicy = "token-split"
    sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    micro_batches: tuple[int, ...] = (1, 2)
    redundancy: float = 1.0
    attention_tp: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One question to a planner.

    tpot_s: the most a token may take.
    ttft_s: the most the first one may take on average; None means anything.
    max_gpus: of both pools and all copies.
    max_copies: of the whole deployment, which share the demand.
    prefill: whether these devices compute the prompts as well (`planner.search.prefill`).
    """

    oracle: Oracle
    activation: ActivationSource
    lengths: RequestLengths
    demand: ServiceDemand
    tpot_s: float
    max_gpus: int
    objective: CostObjective = "gpus"
    memory: MemoryRules = field(default_factory=MemoryRules)
    batching: Batching = field(default_factory=Batching)
    prefill: Prefill = "included"
    max_copies: int = 1024
    ttft_s: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.tpot_s < float("inf"):
            raise ConfigError(f"the TPOT objective must be above 0 seconds, got {self.tpot_s}")
        if self.ttft_s is not None:
            if not 0 < self.ttft_s < float("inf"):
                raise ConfigError(f"the TTFT objective must be above 0 seconds, got {self.ttft_s}")
            if self.prefill == "excluded":
                raise ConfigError(
                    "other devices compute the prompts (prefill excluded), so a TTFT objective "
                    "says nothing about these; leave one of the two out"
                )
        if self.max_gpus < 1:
            raise ConfigError(f"a plan needs at least 1 GPU, got {self.max_gpus}; raise it")
        if self.max_copies < 1:
            raise ConfigError(f"there is at least 1 copy, got {self.max_copies}")
        if self.objective == "price":
            for side in (self.oracle.attention_side, self.oracle.expert_side):
                if side.device.price_per_hour is None:
                    raise ConfigError(
                        f"there is no price of {side.device.name}; give one (--gpu-price) or plan "
                        "for the number of GPUs"
                    )

    @property
    def context(self) -> float:
        return self.lengths.context

    def weight_of(self, side: Literal["attention", "expert"]) -> float:
        """What one more instance of a pool adds to the objective."""
        if self.objective == "gpus":
            return 1.0
        oracle = self.oracle
        device = (oracle.attention_side if side == "attention" else oracle.expert_side).device
        return float(device.price_per_hour or 0.0)

"""What a planner answers: a deployment, or why there is none with the nearest one that there is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from janus_moe.planner.latency.links import Gating
from janus_moe.planner.latency.step import DeploymentKind
from janus_moe.spec import ExchangePlanName, ReplicaPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """One way to serve.

    num_attention, num_expert, batch, tokens_per_s: of one copy; a monolithic copy has as many
        devices as `num_attention` and `num_expert` say, each of them both.
    slots: experts per instance and layer.
    activated: a_max of a micro-batch.
    tpot_s: a decode step.
    ttft_s: mean time to the first token, queue included (`planner.search.prefill`).
    most_tokens: batch of a copy that memory allows.
    cost: in GPUs, or dollars per hour.
    attention_tp: devices of a monolithic copy that share the heads of an attention instance.
    """

    kind: DeploymentKind
    num_attention: int
    num_expert: int
    slots: int
    exchange_plan: ExchangePlanName | Literal["all-to-all"]
    gating: Gating
    policy: ReplicaPolicy
    micro_batches: int
    copies: int
    batch: float
    activated: float
    tpot_s: float
    most_tokens: float
    cost: float
    attention_tp: int = 1
    ttft_s: float = 0.0

    @property
    def shape(self) -> str:
        """For example `1A6E`, `2 x 1A6E`, `8 GPUs`, `8 GPUs TP4`."""
        one = f"{self.num_attention}A{self.num_expert}E"
        if self.kind == "monolithic":
            one = f"{self.num_attention} GPUs" if self.num_attention > 1 else "1 GPU"
            one += f" TP{self.attention_tp}" if self.attention_tp > 1 else ""
        return one if self.copies == 1 else f"{self.copies} x {one}"

    @property
    def gpus_of_copy(self) -> int:
        if self.kind == "monolithic":
            return self.num_attention
        return self.num_attention + self.num_expert

    @property
    def gpus(self) -> int:
        return self.copies * self.gpus_of_copy

    @property
    def tokens_per_s(self) -> float:
        """Output of all copies at this batch."""
        return self.copies * self.batch / self.tpot_s

    @property
    def tokens_per_s_per_gpu(self) -> float:
        """TPG of the paper, at this batch."""
        return self.tokens_per_s / self.gpus

    @property
    def tokens_per_s_per_user(self) -> float:
        return 1 / self.tpot_s

    @property
    def rank(self) -> tuple[float, int, int, int, str, int]:
        """Orders deployments: cost, then TPOT to the nanosecond, then the simpler one."""
        return (
            self.cost,
            round(self.tpot_s * 1e9),
            self.copies,
            self.slots,
            self.exchange_plan,
            self.micro_batches,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Infeasible:
    """No deployment meets the question.

    reason: one sentence with the numbers.
    nearest: what comes closest, if anything runs.
    """

    reason: str
    nearest: Deployment | None = None


Answer = Deployment | Infeasible


class Planner(Protocol):
    """Anything that decides on a deployment for a demand in output tokens per second."""

    @property
    def name(self) -> str: ...

    def decide(self, tokens_per_s: float) -> Answer: ...

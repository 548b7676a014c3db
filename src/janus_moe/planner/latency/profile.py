"""What `janus profile` measured of one model on one machine, as the oracle reads it.

Instances of a pool that share a machine compute at the same time, with fewer threads each and one
memory for all, so tables are by the number of instances.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np

from janus_moe.errors import ConfigError
from janus_moe.planner.latency import facts
from janus_moe.planner.latency.arrays import Array, Numbers
from janus_moe.planner.latency.coefficients import LinkLaw
from janus_moe.planner.latency.duration_grid import DurationGrid
from janus_moe.planner.latency.estimate import Confidence
from janus_moe.spec import ModelSpec, Spec

T = TypeVar("T")


class AttentionTables(Spec, frozen=True):
    """Seconds of one attention instance.

    layer: (tokens, context) of one layer's attention.
    head: (tokens) of logits and sampling.
    dense: (tokens) of a dense layer's MLP; None means that the model has none.
    shared: (tokens) of a shared expert; None means that the model has none.
    """

    layer: DurationGrid
    head: DurationGrid
    dense: DurationGrid | None = None
    shared: DurationGrid | None = None


class ExpertTables(Spec, frozen=True):
    """Seconds of one expert instance and layer.

    gate: (rows that arrive) of gating and scheduling.
    experts: (activated experts, tokens of each) of the experts.
    """

    gate: DurationGrid
    experts: DurationGrid


class HostLaw(Spec, frozen=True):
    """What a service adds to its operations: step_s + token_s * tokens of the whole batch.

    step_s: once a step.
    token_s: per token of the whole batch.
    slower: how much longer operations take in a service than one kind of them again and again,
        because others have used the caches and wake the threads in between; 1 or more.
    """

    step_s: float
    token_s: float
    slower: float = 1.0


class Profile(Spec, frozen=True):
    """What was measured of one model on one machine.

    machine: what it was measured on.
    device: name of the facts that stand for it.
    model: in the formats that it ran in.
    attention: attention instances on the machine -> tables of each of them.
    expert: expert instances on the machine -> tables of each of them.
    hosts: transport -> the host's time.
    exchanges: transport -> one direction of an exchange.
    """

    machine: dict[str, str]
    device: str
    model: ModelSpec
    attention: dict[int, AttentionTables]
    expert: dict[int, ExpertTables]
    hosts: dict[str, HostLaw]
    exchanges: dict[str, LinkLaw]

    def __post_init__(self) -> None:
        if not (self.attention and self.expert and self.exchanges):
            raise ConfigError("a profile needs tables of both pools and at least one exchange")


def read_profile(path: Path) -> Profile:
    """A file that `janus profile` wrote; raises ConfigError that says what is wrong with it."""
    return facts.decode(path, Profile)


def write_profile(path: Path, profile: Profile) -> None:
    """As JSON that people can read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(profile), indent=1) + b"\n")


@dataclass(frozen=True)
class MeasuredTimes:
    """The tables that hold for a shape.

    A factor says how much longer operations take than in the tables: in a service, and because
    more instances share the machine than were measured.

    attention: tables of an attention instance.
    expert: tables of an expert instance.
    attention_factor: of the attention side.
    expert_factor: of the expert side.
    attention_confidence: in what the attention tables say.
    experts_confidence: in what the expert tables say.
    """

    attention: AttentionTables
    expert: ExpertTables
    attention_factor: float
    expert_factor: float
    attention_confidence: Confidence = "interpolated"
    experts_confidence: Confidence = "interpolated"

    @classmethod
    def of(
        cls, profile: Profile, num_attention: int, num_expert: int, slower: float = 1.0
    ) -> MeasuredTimes:
        attention, attention_turns = _shared_by(profile.attention, num_attention)
        expert, expert_turns = _shared_by(profile.expert, num_expert)
        return cls(
            attention,
            expert,
            slower * attention_turns,
            slower * expert_turns,
            "interpolated" if attention_turns == 1 else "roofline",
            "interpolated" if expert_turns == 1 else "roofline",
        )

    def attention_layer_s(self, tokens: Numbers, context: Numbers, tp: Numbers = 1) -> Array:
        _undivided(tp)
        return self.attention_factor * self.attention.layer.seconds(tokens, context)

    def lm_head_s(self, tokens: Numbers, tp: Numbers = 1) -> Array:
        _undivided(tp)
        return self.attention_factor * self.attention.head.seconds(tokens)

    def dense_layer_s(self, tokens: Numbers) -> Array:
        return self.attention_factor * _or_nothing(self.attention.dense, tokens)

    def shared_expert_s(self, tokens: Numbers) -> Array:
        return self.attention_factor * _or_nothing(self.attention.shared, tokens)

    def moe_layer_s(
        self, activated: Numbers, tokens: Numbers, rows: Numbers, slots: Numbers
    ) -> Array:
        some = np.asarray(activated, np.float64) > 0  # searches ask for bounds with none activated
        each = np.where(some, tokens / np.where(some, activated, 1.0), 0.0)
        gate, experts = self.expert.gate.seconds(rows), self.expert.experts.seconds(activated, each)
        return self.expert_factor * (gate + experts)

    @property
    def product_confidence(self) -> Confidence:
        return self.attention_confidence


def _or_nothing(grid: DurationGrid | None, tokens: Numbers) -> Array:
    return np.zeros_like(np.asarray(tokens, np.float64)) if grid is None else grid.seconds(tokens)


def _shared_by(tables: Mapping[int, T], num_instances: int) -> tuple[T, float]:
    """The tables of so many instances, or the next larger number that was measured; beyond the
    largest, cores are shared in turns."""
    enough = [count for count in tables if count >= num_instances]
    if enough:
        return tables[min(enough)], 1.0
    largest = max(tables)
    return tables[largest], num_instances / largest


def _undivided(tp: Numbers) -> None:
    if np.any(np.asarray(tp) != 1):
        raise ConfigError(
            f"attention was measured on one device; there are no figures for {tp} that share it"
        )

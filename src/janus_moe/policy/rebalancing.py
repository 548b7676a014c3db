"""Whether another placement is worth the move, from what routing did lately.

Placements are judged as the scheduler will use them: by how many experts the busiest instance
would activate, with the experts of a batch drawn independently by their measured share. This
module does not know how statistics arrive or how a change is carried out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from janus_moe.errors import ConfigError, ConflictError
from janus_moe.policy.activation import Policy
from janus_moe.policy.estimate import monte_carlo
from janus_moe.policy.placement import Placement, activation_probability, place_experts

MIN_GAIN = 0.03
"""A smaller gain is not worth loading experts for: estimates of equal placements differ by 1 %."""


@dataclass(frozen=True, eq=False)
class ObservedRouting:
    """num_batches, num_tokens: [layers]. tokens: [layers, experts], routed to each."""

    num_batches: NDArray[np.int64]
    num_tokens: NDArray[np.int64]
    tokens: NDArray[np.int64]

    @property
    def batch_size(self) -> int:
        """Mean tokens of a batch, 1 or more."""
        return max(1, round(float(self.num_tokens.sum() / max(1, self.num_batches.sum()))))

    def probability(self) -> NDArray[np.float64]:
        """[layers, experts], P(active) in a batch of the mean size."""
        return activation_probability(self.tokens, self.num_tokens, self.batch_size)


@dataclass(frozen=True, slots=True)
class Proposal:
    """busiest_now, busiest_then: expected activated experts of the busiest instance, mean over
    the layers."""

    target: Placement
    busiest_now: float
    busiest_then: float

    @property
    def worthwhile(self) -> bool:
        return self.busiest_then < (1 - MIN_GAIN) * self.busiest_now


def propose(
    current: Placement, capacity: Sequence[int], observed: ObservedRouting, policy: Policy
) -> Proposal:
    """The placement for the observed routing, on instances with `capacity` slots per layer."""
    if not (observed.num_tokens > 0).all():
        layer = int(np.argmin(observed.num_tokens))
        raise ConflictError(f"there are no statistics yet: 0 tokens seen in MoE layer {layer}")
    probability = observed.probability()
    target = place_experts("janus", probability, capacity, epoch=current.epoch + 1)
    return Proposal(
        target,
        expected_busiest(current, probability, policy),
        expected_busiest(target, probability, policy),
    )


def requested(
    slots: Sequence[Sequence[Sequence[int]]], current: Placement, capacity: Sequence[int]
) -> Placement:
    """A placement that is asked for, if this service can hold it; ConfigError if not.

    slots: [layers][instances] logical expert ids. capacity: [instances] slots per layer.
    """
    target = Placement(
        epoch=current.epoch + 1,
        num_experts=current.num_experts,
        slots=tuple(tuple(tuple(experts) for experts in layer) for layer in slots),
    )
    if (target.num_layers, target.num_instances) != (current.num_layers, current.num_instances):
        raise ConfigError(
            f"the placement is of {target.num_layers} layers on {target.num_instances} expert "
            f"instances, this service has {current.num_layers} on {current.num_instances}"
        )
    for layer, instances in enumerate(target.slots):
        for instance, experts in enumerate(instances):
            if len(experts) > capacity[instance]:
                raise ConfigError(
                    f"layer {layer} has {len(experts)} experts on instance {instance}, which has "
                    f"{capacity[instance]} slots"
                )
    return target


def expected_busiest(
    placement: Placement, probability: NDArray[np.float64], policy: Policy
) -> float:
    """Mean over layers of the activated experts of the busiest instance, by simulation."""
    peaks = []
    for layer, active in enumerate(probability):

        def sample(
            _: int, rng: np.random.Generator, active: NDArray[np.float64] = active
        ) -> NDArray[np.int32]:
            drawn = np.flatnonzero(rng.random(active.size) < active).astype(np.int32)
            return drawn.reshape(1, -1)

        peaks.append(monte_carlo(sample, placement.layer_layout(layer), 1, policy))
    return float(np.mean(peaks))

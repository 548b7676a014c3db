"""Which exchange plan a step has: one instance says it for all, so that they never disagree.

The attention instance of rank 0 announces every step with the plans of all batch sizes, packed into
one word. Once all announcements are in, all instances know how many tokens the step has, and read
the same plan from the same word. The rule is `policy.exchange_choice`, prices are those of
`planner.latency.links`.
"""

from __future__ import annotations

import logging
import math
from typing import Protocol

from janus_moe.planner.latency.link_fit import exchange_seconds
from janus_moe.planner.latency.links import LinkModel
from janus_moe.policy.exchange_choice import (
    NUM_BUCKETS,
    ChoiceRule,
    PlanChoice,
    bucket_of,
    bucket_tokens,
    expected_times,
    first_choice,
    next_choice,
    pack,
    unpack,
)
from janus_moe.spec import EXCHANGE_PLANS, ExchangePlanName
from janus_moe.transport.exchange_plans import Topology, egate_plan
from janus_moe.transport.exchange_plans.pricing import priced_counts
from janus_moe.transport.exchange_plans.program import RowBytes

logger = logging.getLogger(__name__)


class PlanSource(Protocol):
    """What the attention instance of rank 0 asks before it announces a step."""

    @property
    def packed_plans(self) -> int:
        """The plans of all batch sizes, for `plan_in`."""
        ...

    def observe(self, tokens: int, seconds: float) -> str:
        """A step of `tokens` in all took `seconds` per exchange, under the plan of `packed_plans`.

        Returns a sentence for the log where that changes a plan for long, else "".
        """
        ...


def plan_in(packed_plans: int, tokens: int) -> ExchangePlanName:
    """The plan of a step with so many tokens in all."""
    return EXCHANGE_PLANS[unpack(packed_plans, tokens)]


class FixedPlan:
    """One plan for everything; a `PlanSource`."""

    def __init__(self, plan: ExchangePlanName) -> None:
        self.packed_plans = pack([EXCHANGE_PLANS.index(plan)] * NUM_BUCKETS)

    def observe(self, tokens: int, seconds: float) -> str:
        return ""


class PlanChooser:
    """The adaptive `PlanSource`.

    row_bytes: of the hidden states and of their sums.
    links: what a message costs, by model.
    rule: when plans race, and when a race ends; None means the default.
    """

    def __init__(
        self,
        topology: Topology,
        row_bytes: RowBytes,
        links: LinkModel,
        rule: ChoiceRule | None = None,
    ) -> None:
        self.predicted = [
            predicted_times(topology, bucket_tokens(bucket), row_bytes, links)
            for bucket in range(NUM_BUCKETS)
        ]
        self.choices = [first_choice(times) for times in self.predicted]
        self._rule = rule or ChoiceRule()
        self._settled = [choice.current for choice in self.choices]
        self.packed_plans = self._pack()

    def observe(self, tokens: int, seconds: float) -> str:
        bucket = bucket_of(tokens)
        before = self.choices[bucket]
        seconds *= self._to_bucket(bucket, before.current, tokens)
        self.choices[bucket] = after = next_choice(before, seconds, self._rule)
        if after.current != before.current:
            self.packed_plans = self._pack()
        if after.racing or after.winner == self._settled[bucket]:
            return ""
        notice = self._notice(bucket, self._settled[bucket], after)
        self._settled[bucket] = after.winner
        return notice

    def settled(self, tokens: int) -> bool:
        """Whether no plans race at this batch size."""
        return not self.choices[bucket_of(tokens)].racing

    def _to_bucket(self, bucket: int, plan: int, tokens: int) -> float:
        """Turns a time with so many tokens into one with all of the bucket, as the model grows."""
        if bucket == 0 or tokens >= bucket_tokens(bucket):
            return 1.0
        low, high = self.predicted[bucket - 1][plan], self.predicted[bucket][plan]
        if not (0 < low <= high < math.inf):
            return 1.0
        share = tokens / bucket_tokens(bucket - 1) - 1
        return high / (low + share * (high - low))

    def _pack(self) -> int:
        return pack(choice.current for choice in self.choices)

    def _notice(self, bucket: int, old: int, choice: PlanChoice) -> str:
        times_us, new = [1e6 * s for s in expected_times(choice)], choice.winner
        return (
            f"exchange of up to {bucket_tokens(bucket)} tokens: {EXCHANGE_PLANS[new]} "
            f"({times_us[new]:.0f} us) instead of {EXCHANGE_PLANS[old]} ({times_us[old]:.0f} us)"
        )


def predicted_times(
    topology: Topology, tokens: int, row_bytes: RowBytes, links: LinkModel
) -> tuple[float, ...]:
    """[EXCHANGE_PLANS] seconds of an exchange of `tokens` in all, spread evenly.

    inf for a plan that does the same as an earlier one, as far as its price can tell.
    """
    share, rest = divmod(tokens, topology.num_attention_instances)
    spread = tuple(share + (index < rest) for index in range(topology.num_attention_instances))
    seen, times = [], []
    for plan in EXCHANGE_PLANS:
        counts = priced_counts(egate_plan.__wrapped__(plan, topology, spread), row_bytes)
        times.append(math.inf if counts in seen else exchange_seconds(links, counts))
        seen.append(counts)
    return tuple(times)

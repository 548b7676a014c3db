"""The activation scheduler: which replica computes each activated expert of one layer's batch.

The layer costs what its busiest instance reads, so the goal is the smallest maximum of distinct
activated experts per instance; one replica serves all tokens of its expert. Every expert instance
runs this on the same input and must get the same answer, so everything is integers, in a fixed
order, with ties to the lowest id. The other policies are what peers do, for comparison.

layout     where the replicas of one layer live, and the answer's type
reference  the semantics, in plain Python
fast       the same answers (==), compiled
scheduler  the entry points: `Scheduler` (reuses buffers) and `schedule` (one call)
token_aware  `TokenAwareScheduler`, for batches so large that tokens cost too; its rule in
           `token_aware_reference` and compiled in `token_aware_fast`
"""

from janus_moe.policy.activation.layout import Assignment, LayerLayout, Rewrite
from janus_moe.policy.activation.scheduler import Scheduler, schedule
from janus_moe.policy.activation.token_aware import (
    LayerCost,
    TokenAwareRewrite,
    TokenAwareScheduler,
)
from janus_moe.spec import ExpertPolicy, Policy

__all__ = [
    "Assignment",
    "ExpertPolicy",
    "LayerCost",
    "LayerLayout",
    "Policy",
    "Rewrite",
    "Scheduler",
    "TokenAwareRewrite",
    "TokenAwareScheduler",
    "schedule",
]

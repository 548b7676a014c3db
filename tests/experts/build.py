"""An expert instance as a worker builds it, without a worker."""

from __future__ import annotations

from typing import Any

from janus_moe.experts.epoch import first_tables
from janus_moe.experts.instance import ExpertInstance
from janus_moe.experts.routing_observer import RoutingObserver
from janus_moe.experts.runner import ExpertRunner
from janus_moe.experts.scheduling import Rule, Schedulers
from janus_moe.experts.served_epochs import ServedEpochs
from janus_moe.policy.placement import Placement
from janus_moe.spec import InstanceId


def expert_instance(
    rank: int, model: Any, placement: Placement, rule: Rule = "exact"
) -> ExpertInstance:
    """The instance of this rank and number, on the CPU; nothing observes its routing.

    model: an `ExpertModel`, or what stands for it.
    """
    instance_id = InstanceId(pool="expert", number=rank)
    return ExpertInstance(
        instance_id,
        ExpertRunner(model),
        ServedEpochs(
            instance_id, rank, placement, first_tables(placement, rank), Schedulers(rank, rule)
        ),
        model.spec.moe_layer_ids,
        RoutingObserver(placement.num_layers, placement.num_experts),
    )

"""An expert instance as a worker builds it, without a worker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from janus_moe.experts.epoch import (
    Arrival,
    contents_of,
    first_tables,
    make_epoch,
    place_arrivals,
)
from janus_moe.experts.instance import ExpertInstance
from janus_moe.experts.routing_observer import RoutingObserver
from janus_moe.experts.runner import ExpertRunner
from janus_moe.experts.scheduling import Rule, Schedulers, Table
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
    schedulers = Schedulers(rank, rule)
    first = make_epoch(placement, first_tables(placement, rank), schedulers)
    return ExpertInstance(
        instance_id,
        ExpertRunner(model),
        ServedEpochs(instance_id, rank, first, schedulers),
        model.spec.moe_layer_ids,
        RoutingObserver(placement.num_layers, placement.num_experts),
    )


def next_tables(
    current: Sequence[Table], experts: Sequence[Sequence[int]], num_slots: int
) -> tuple[list[Table], list[Arrival]]:
    """Where experts lie after an epoch in which they lay so, and what has to be loaded.

    current, experts: [moe layers] tables, and logical ids afterwards.
    num_slots: of every layer.
    """
    contents = [contents_of(table, num_slots) for table in current]
    in_use = [table.tolist() for table in current]
    return place_arrivals(contents, experts, in_use, len(current[0]))

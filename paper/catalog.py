"""All figures in the order of the report."""

from __future__ import annotations

from types import ModuleType

from paper import (
    ablation,
    fig01_parallelism,
    fig02_batch,
    fig03_activated,
    fig04_week,
    fig08_throughput,
    fig09_objective,
    fig10_spare_slots,
    fig11_day,
    fig12_ablation,
    fig13_activation,
    fig14_moe_latency,
    fig15_scheduler_cost,
    fig16_space,
    fig17_bound,
    simulated_day,
)

_IN_ORDER = (
    fig01_parallelism,
    fig02_batch,
    fig03_activated,
    fig04_week,
    fig08_throughput,
    fig09_objective,
    fig10_spare_slots,
    fig11_day,
    simulated_day,
    fig12_ablation,
    fig13_activation,
    fig14_moe_latency,
    fig15_scheduler_cost,
    fig16_space,
    fig17_bound,
    ablation,
)

FIGURES: dict[str, ModuleType] = {module.NUMBER: module for module in _IN_ORDER}

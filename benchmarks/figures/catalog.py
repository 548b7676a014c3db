"""All figures in the order of the report."""

from __future__ import annotations

from types import ModuleType

from benchmarks.figures import (
    fig01_parallelism,
    fig02_batch,
    fig03_activated,
    fig04_week,
    fig12_ablation,
    fig13_activation,
    fig14_moe_latency,
    fig15_scheduler_cost,
    fig17_bound,
)

_IN_ORDER = (
    fig01_parallelism,
    fig02_batch,
    fig03_activated,
    fig04_week,
    fig12_ablation,
    fig13_activation,
    fig14_moe_latency,
    fig15_scheduler_cost,
    fig17_bound,
)

FIGURES: dict[str, ModuleType] = {module.NUMBER: module for module in _IN_ORDER}

"""Where a second micro-batch in flight would pay, by the latency oracle.

    python -m benchmarks.ping_pong [--json FILE.json]

With two micro-batches the pools compute at once, and the exchange of one hides behind the compute
of the other; but each reads nearly all activated experts again. Routing is uniform: of E experts on
n instances, B tokens activate E/n * (1 - (1 - k/E)^B) on each.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.support.report import machine_facts, print_table, write_json

from janus_moe.planner.latency import Oracle

CASES = (
    ("deepseek-v2", "h100_sxm", 4, 8),
    ("deepseek-v3", "h200_sxm", 8, 16),
    ("qwen3-235b-a22b", "h100_sxm", 4, 8),
)
BATCHES = (16, 64, 256, 1024, 4096)
CONTEXT = 1000.0


def activated(oracle: Oracle, tokens: float, instances: int) -> float:
    experts, top_k = oracle.model.num_experts, oracle.model.top_k
    missed: float = (1 - top_k / experts) ** tokens
    return experts / instances * (1 - missed)


def step_ms(oracle: Oracle, batch: int, attention: int, expert: int, micro_batches: int) -> float:
    load = oracle.pools_load(
        batch,
        CONTEXT,
        attention,
        expert,
        activated(oracle, batch / micro_batches, expert),
        micro_batches=micro_batches,
    )
    return 1e3 * float(oracle.step_s(load))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="JSON with machine, commit and all figures")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for model, device, attention, expert in CASES:
        oracle = Oracle.build(model, device, device)
        for batch in BATCHES:
            one = step_ms(oracle, batch, attention, expert, 1)
            two = step_ms(oracle, batch, attention, expert, 2)
            again = activated(oracle, batch / 2, expert) / activated(oracle, batch, expert)
            rows.append(
                {
                    "model": model,
                    "device": device,
                    "pools": f"{attention}A{expert}E",
                    "batch": batch,
                    "one_ms": round(one, 2),
                    "two_ms": round(two, 2),
                    "gain": round(one / two, 2),
                    "experts_read": round(2 * again, 2),
                }
            )
    print_table(rows)
    if options.json:
        write_json(
            options.json, {"benchmark": "ping_pong", "machine": machine_facts(), "rows": rows}
        )


if __name__ == "__main__":
    main()

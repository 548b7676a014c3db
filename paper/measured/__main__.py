"""Draws the pictures in docs/figures from committed results.

python -m paper.measured [--only a_max cluster] [--out docs/figures]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from paper.measured import activation, exchange, hosts, scheduler, topics

PICTURES: dict[str, Callable[[Path], None]] = {
    "a_max": activation.synthetic,
    "drift": activation.drift,
    "a_max_recorded": activation.recorded,
    "scheduler_cost": scheduler.cost,
    "live_drift": topics.live_drift,
    "exchange_regions": exchange.regions,
    "exchange_sensitivity": exchange.sensitivity,
    "ablation_measured": exchange.fig12_measured,
    "cluster": hosts.services,
}
"""Name of the file -> what draws it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=list(PICTURES), default=list(PICTURES))
    parser.add_argument("--out", type=Path, default=Path("docs/figures"))
    options = parser.parse_args()
    for name in options.only:
        PICTURES[name](options.out / f"{name}.png")
        print(f"{name}.png", flush=True)


if __name__ == "__main__":
    main()

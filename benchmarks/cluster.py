"""A running service across hosts, per exchange plan, batch and link: time per token and exchange.

    python -m benchmarks.cluster [--json FILE.json] [--rates-gbps 0.2 1 10]

Needs root: the hosts are network namespaces with limited links (`benchmarks.support.hosts`). Each
service is the engine in host 0 and `janus worker --join` in each other host, over TCP. One service
per plan, all up at once; they take turns, round by round, while the others are idle. `auto` gets a
new service for every rate, and steps to learn before each cell. `1pc x2` computes steps in two
micro-batches that take turns (`--micro-batch-threshold`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
from benchmarks.support.cluster_engine import IN_TWO, Answer, Job, Order
from benchmarks.support.hosts import Link, Network, network
from benchmarks.support.program import Result, flag, main

PLANS = ("1pc", "2pc-direct", "2pc-relay", "2pc-sharded", "auto")
ALL_PLANS = (*PLANS, *(plan + IN_TWO for plan in PLANS if plan != "auto"))
CASES = {
    "2A,2E": ((0.2, 1.0, 10.0), (4, 32, 128, 512)),
    "1A,1A,2E,2E": ((0.2,), (32, 512)),
    "2A,2E,2E": ((0.2, 1.0), (32, 512)),
}
"""Hosts -> rates of their links and batches; within 15 minutes on two cores."""
LEARN_STEPS = 64
VISIT_S = 1.5
MIN_STEPS, MAX_STEPS = 5, 24
NAMES = ("local", "b", "c", "d")


class Services:
    """All services of one layout of hosts, with their other hosts' agents."""

    def __init__(self, net: Network, order: Order) -> None:
        self._engine = net[0].popen(
            [sys.executable, "-m", "benchmarks.support.cluster_engine", json_of(order)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        while "ready" not in (told := self._read()):
            flags = ["--join", told["join"], "--name", told["host"]]
            flags += ["--secret-file", order.secret_file]
            net[NAMES.index(told["host"])].popen(
                [sys.executable, "-m", "janus_moe.cli", "worker", *flags],
                stderr=subprocess.DEVNULL,
            )

    def measure(self, job: Job) -> Answer:
        assert self._engine.stdin is not None
        print(json_of(job), file=self._engine.stdin, flush=True)
        return msgspec.convert(self._read(), Answer)

    def close(self) -> None:
        assert self._engine.stdin is not None
        self._engine.stdin.close()
        self._engine.wait(60)

    def _read(self) -> dict[str, Any]:
        assert self._engine.stdout is not None
        line = self._engine.stdout.readline()
        if not line:
            raise SystemExit("benchmarks.cluster: the engine has ended; its message is above")
        result: dict[str, Any] = json.loads(line)
        return result


def json_of(value: Any) -> str:
    return msgspec.json.encode(value).decode()


@contextlib.contextmanager
def running(
    layout: Sequence[str], rates: Sequence[float], batches: Sequence[int], plans: Sequence[str]
) -> Iterator[tuple[Network, Services]]:
    """Starts the services on hosts of their own.

    layout: instances of each host, such as 2A or 1E.
    rates: Gb/s; `auto` gets a service for each.
    batches: requests at once.
    """
    counts = {
        pool: sum(int(part[:-1]) for part in layout if part.endswith(pool)) for pool in ("A", "E")
    }
    names = {plan: plan for plan in plans if plan != "auto"}
    if "auto" in plans:
        names |= {f"auto {rate:g}": "auto" for rate in rates}
    with network(len(layout)) as net, tempfile.TemporaryDirectory() as folder:
        secret = Path(folder) / "secret"
        secret.touch(mode=0o600)
        secret.write_text("only for this benchmark\n", encoding="utf-8")
        order = Order(
            services=names,
            attention=counts["A"],
            experts=counts["E"],
            hosts=",".join(f"{name}={part}" for name, part in zip(NAMES, layout, strict=False)),
            listen=f"{net[0].address}:0",
            secret_file=str(secret),
            max_batch=max(batches),
        )
        services = Services(net, order)
        yield net, services
        services.close()


def measure_cell(
    services: Services, rate: float, batch: int, options: argparse.Namespace
) -> dict[str, list[Answer]]:
    """Answers of all rounds by plan."""
    found: dict[str, list[Answer]] = {plan: [] for plan in options.plans}
    steps = dict.fromkeys(options.plans, MIN_STEPS)
    names = {plan: f"auto {rate:g}" if plan == "auto" else plan for plan in options.plans}
    if "auto" in names:
        learning = Job(service=names["auto"], batch=batch, steps=MIN_STEPS, warm_up=LEARN_STEPS)
        services.measure(learning)
    for _ in range(options.rounds):
        for plan, name in names.items():
            job = Job(service=name, batch=batch, steps=steps[plan], warm_up=1)
            answer = services.measure(job)
            steps[plan] = max(MIN_STEPS, min(MAX_STEPS, int(VISIT_S / answer.tpot_s)))
            found[plan].append(answer)
    return found


def rows_of(
    layout: Sequence[str], rate: float, batch: int, found: dict[str, list[Answer]]
) -> list[dict[str, Any]]:
    rows = []
    for plan, answers in found.items():
        ratios = [
            answer.tpot_s / base.tpot_s for answer, base in zip(answers, found["1pc"], strict=True)
        ]
        plans: dict[str, int] = {}
        for answer in answers:
            for name, count in answer.plans.items():
                plans[name] = plans.get(name, 0) + count
        rows.append(
            {
                "hosts": " ".join(layout),
                "gbps": rate,
                "batch": batch,
                "plan": plan,
                "tpot_ms": 1e3 * median(answer.tpot_s for answer in answers),
                "exchange_ms": 1e3
                * median(answer.dispatch_s + answer.combine_s for answer in answers),
                "tpot_vs_1pc": median(ratios),
                "ratios": [round(ratio, 4) for ratio in ratios],
                "plans": plans,
                "steps": sum(answer.num_steps for answer in answers),
            }
        )
    return rows


def measure(options: argparse.Namespace) -> Result:
    if "1pc" not in options.plans:
        raise SystemExit("--plans needs 1pc, which the others are compared with")
    rows: list[dict[str, Any]] = []
    for text in options.layouts:
        rates, batches = CASES.get(text, CASES["2A,2E"])
        rates, batches = options.rates_gbps or rates, options.batches or batches
        layout, started = text.split(","), time.monotonic()
        with running(layout, rates, batches, options.plans) as (net, services):
            _note(started, f"{text}: started")
            for rate in rates:
                net.set_link(Link(rate))
                for batch in batches:
                    started = time.monotonic()
                    found = measure_cell(services, rate, batch, options)
                    rows += rows_of(layout, rate, batch, found)
                    _note(started, f"{text}, {rate:g} Gb/s, batch {batch}")
            net.set_link(Link())
    return {"rows": rows}


def _note(started: float, what: str) -> None:
    print(f"{what} ({time.monotonic() - started:.0f} s)", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(
        __doc__,
        measure,
        flag("--layouts", nargs="+", default=list(CASES)),
        flag("--rates-gbps", type=float, nargs="+"),
        flag("--batches", type=int, nargs="+"),
        flag("--plans", nargs="+", choices=ALL_PLANS, default=list(PLANS)),
        flag("--rounds", type=int, default=2),
    )

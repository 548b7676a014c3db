"""Round trip of one exchange: dispatch, accept, reply, combine, with experts that only echo.

Claim: an exchange costs tens of microseconds, small against reading a layer's experts. Each
attention instance sends `tokens` rows of 1024 float32; the first one is timed. `loopback` runs the
experts inline and attention instances in threads, `shm` runs every instance in its own process.

    python -m benchmarks.transport [--json FILE.json] [--steps 60] [--spin-us 0]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import torch
from benchmarks.support.report import machine_facts, write_json

from janus_moe.errors import ExchangeClosed
from janus_moe.spec import PoolShape
from janus_moe.transport import (
    AttentionPort,
    ExpertPort,
    LoopbackExchange,
    ReplyMetadata,
    ShmAddress,
    ShmLayout,
    ShmRegion,
    WaitRule,
)

HIDDEN = 1024
LAYERS = 12
TOKENS = (1, 4, 16, 64, 256)
SHAPES = ((1, 1), (1, 2), (2, 3))
NOTE = ReplyMetadata(routing_digest=1, activated=2)


def drive(port: AttentionPort, num_steps: int) -> dict[int, list[float]]:
    """Seconds of every exchange, by tokens; the first third of the steps warms up."""
    seconds: dict[int, list[float]] = {tokens: [] for tokens in TOKENS}
    for tokens in TOKENS:
        hidden = torch.zeros(tokens, HIDDEN)
        for step in range(num_steps):
            port.begin_step(tokens)
            for layer in range(LAYERS):
                started = time.perf_counter()
                port.combine(port.dispatch(layer, hidden))
                if layer and step >= num_steps // 3:  # layer 0 also waits for the peers' step
                    seconds[tokens].append(time.perf_counter() - started)
    return seconds


def echo(port: ExpertPort) -> None:
    work = port.accept()
    if work is not None:
        port.reply(work, work.hidden, NOTE)


def measure_loopback(shape: PoolShape, num_steps: int, rule: WaitRule) -> dict[int, list[float]]:
    exchange = LoopbackExchange(shape)
    for expert in range(shape.expert):
        exchange.serve(expert, echo)
    ports = [exchange.attention_port(i, rule) for i in range(shape.attention)]
    peers = [threading.Thread(target=drive, args=(port, num_steps)) for port in ports[1:]]
    for peer in peers:
        peer.start()
    seconds = drive(ports[0], num_steps)
    for peer in peers:
        peer.join()
    return seconds


def measure_shm(shape: PoolShape, num_steps: int, rule: WaitRule) -> dict[int, list[float]]:
    layout = ShmLayout(shape=shape, max_tokens=max(TOKENS), hidden_size=HIDDEN, dtype="float32")
    region = ShmRegion.create(layout)
    address = msgspec.json.encode(region.address).decode()
    instances = [("expert", i) for i in range(shape.expert)]
    instances += [("attention", i) for i in range(1, shape.attention)]
    module = [sys.executable, "-m", "benchmarks.transport"]
    command = [*module, "--steps", str(num_steps), "--spin-us", str(rule.spin_us)]
    processes = [
        subprocess.Popen([*command, "--instance", address, pool, str(index)], pass_fds=region.fds)
        for pool, index in instances
    ]
    try:
        return drive(region.attention_port(0, rule), num_steps)
    finally:
        region.shutdown()
        for process in processes:
            process.wait(30)
        region.close()


def run_instance(address: str, pool: str, index: int, num_steps: int, rule: WaitRule) -> None:
    region = ShmRegion.attach(msgspec.json.decode(address, type=ShmAddress))
    with suppress(ExchangeClosed):
        if pool == "attention":
            drive(region.attention_port(index, rule), num_steps)
            return
        port = region.expert_port(index, rule)
        while True:
            echo(port)


def summary(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    quantiles = {"p10": 0.1, "median": 0.5, "p90": 0.9, "p99": 0.99}
    return {
        f"{name}_us": round(1e6 * ordered[int(share * (len(ordered) - 1))], 1)
        for name, share in quantiles.items()
    }


def measure_all(num_steps: int, rule: WaitRule) -> list[dict[str, Any]]:
    rows = []
    print(
        f"{'backend':<10}{'shape':<7}{'tokens':>7}{'p10':>9}{'median':>9}{'p90':>9}{'p99':>9}  us"
    )
    for backend, measure in (("loopback", measure_loopback), ("shm", measure_shm)):
        for attention, expert in SHAPES:
            shape = PoolShape(attention=attention, expert=expert)
            for tokens, seconds in measure(shape, num_steps, rule).items():
                figures = summary(seconds)
                rows.append({"backend": backend, "shape": str(shape), "tokens": tokens, **figures})
                cells = "".join(f"{value:>9.1f}" for value in figures.values())
                print(f"{backend:<10}{shape!s:<7}{tokens:>7}{cells}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="JSON with machine, commit and all figures")
    parser.add_argument("--steps", type=int, default=60, help="steps per token count")
    parser.add_argument("--spin-us", type=float, default=0.0)
    parser.add_argument("--instance", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    rule = WaitRule(timeout_s=60.0, spin_us=options.spin_us)
    torch.set_num_threads(1)
    if options.instance:
        address, pool, index = options.instance
        run_instance(address, pool, int(index), options.steps, rule)
        return
    result = {
        "benchmark": "transport",
        "hidden_size": HIDDEN,
        "dtype": "float32",
        "spin_us": options.spin_us,
        "machine": machine_facts(),
        "rows": measure_all(options.steps, rule),
    }
    if options.json:
        write_json(options.json, result)


if __name__ == "__main__":
    main()

"""Two builds of Janus decode at the same speed.

    python -m benchmarks.two_builds --other CHECKOUT [--json FILE.json] [--rounds 40]

Claim: what this checkout serves takes at most 2 % more time per token than the other one.

Both builds serve the same checkpoint as users start them (`janus serve`, its own workers), with
requests over HTTP, and take turns, round by round, in changing order. The ratio is the median over
pairs, with a 95 % bootstrap interval; `cpu` is processor time per token of the server and all its
workers. `--shapes 1A1E 1A2E`, `--batches 1 16` and `--model FOLDER` choose what is compared.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import psutil
from benchmarks.support.program import Result, flag, main
from benchmarks.support.ratios import paired_ratio

THIS = Path(__file__).parents[1]
TOKENS = 48
READY_S = 300.0


class Turn(NamedTuple):
    """A batch that one build has decoded.

    seconds: for all tokens.
    cpu_s: processor time of the server and its workers meanwhile.
    """

    seconds: float
    cpu_s: float


class Build:
    """One running server of a checkout."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"
        self._process = psutil.Process(process.pid)
        deadline = time.monotonic() + READY_S
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self._url}/health"):
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server of {process.args!r} did not get ready")
            time.sleep(0.2)

    def decode(self, batch: int, turn: int) -> Turn:
        """`batch` prompts of 8 tokens, `TOKENS` tokens each, as one request."""
        prompts = [
            [(turn * 131 + row * 17 + i) % 200 + 1 for i in range(8)] for row in range(batch)
        ]
        body = {"prompt": prompts, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
        request = urllib.request.Request(
            f"{self._url}/v1/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        before, start = self._cpu_s(), time.perf_counter()
        with urllib.request.urlopen(request, timeout=600) as response:
            response.read()
        return Turn(time.perf_counter() - start, self._cpu_s() - before)

    def _cpu_s(self) -> float:
        processes = [self._process, *self._process.children(recursive=True)]
        return sum(sum(process.cpu_times()[:2]) for process in processes)


@contextlib.contextmanager
def served(checkout: Path, shape: str, model: str, port: int) -> Iterator[Build]:
    attention, expert = shape.removesuffix("E").split("A")
    flags = ["--attention-instances", attention, "--expert-instances", expert]
    command = [sys.executable, "-m", "janus_moe.cli", "serve", model, *flags]
    process = subprocess.Popen(
        [*command, "--port", str(port), "--max-model-len", "512", "--prefix-caching", "off"],
        env={**os.environ, "PYTHONPATH": str(checkout.resolve() / "src")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield Build(process, port)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def measure(options: argparse.Namespace) -> Result:
    rows = [row for shape in options.shapes for row in compare(shape, options)]
    return {"builds": [commit(THIS), commit(options.other)], "rows": rows}


def compare(shape: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    turns: dict[tuple[int, str], list[Turn]] = {}
    with (
        served(THIS, shape, options.model, options.port) as this,
        served(options.other, shape, options.model, options.port + 1) as other,
    ):
        builds = {"this": this, "other": other}
        for turn in range(options.rounds + 1):
            order = sorted(builds, reverse=bool(turn % 2))
            for batch in options.batches:
                for name in order:
                    found = builds[name].decode(batch, turn)
                    if turn:  # the first round warms up
                        turns.setdefault((batch, name), []).append(found)
    return [
        row(shape, batch, turns[batch, "this"], turns[batch, "other"]) for batch in options.batches
    ]


def row(shape: str, batch: int, this: list[Turn], other: list[Turn]) -> dict[str, Any]:
    ratio = paired_ratio([turn.seconds for turn in this], [turn.seconds for turn in other])
    return {
        "shape": shape,
        "batch": batch,
        "token ms": 1e3 * median(turn.seconds for turn in this) / TOKENS,
        "other ms": 1e3 * median(turn.seconds for turn in other) / TOKENS,
        **ratio.columns("over other"),
        "cpu us": 1e6 * mean(turn.cpu_s for turn in this) / TOKENS / batch,
        "cpu over other": sum(t.cpu_s for t in this) / sum(t.cpu_s for t in other),
        "pairs": ratio.num_pairs,
    }


def commit(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main(
        __doc__,
        measure,
        flag("--other", type=Path, required=True, help="another checkout of the repository"),
        flag("--rounds", type=int, default=40, help="pairs of turns"),
        flag("--shapes", nargs="+", default=["1A1E", "1A2E"], help="pools, e.g. 1A2E"),
        flag("--batches", type=int, nargs="+", default=[1, 16], help="prompts at once"),
        flag("--model", default="bundled", help="a checkpoint that both builds can serve"),
        flag("--port", type=int, default=18400, help="this one and the next are used"),
    )

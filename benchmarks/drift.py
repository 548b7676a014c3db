"""How fast live rebalancing follows a change of topic.

    python -m benchmarks.drift [--json FILE] [--plot FILE.png]

The bundled model on 2 attention and 4 expert instances, one replica of an eighth of the experts,
completes pieces of its held-out files: first code without comments, then, from one moment on, the
comments and docstrings alone. Two services get the same prompts. Both start from the placement that
rebalancing found for the code; one goes on with `--rebalance-interval 1`, the other stays.

The figure is the number of experts that the busiest instance activates, mean over the layers of a
step. Recovered means: the running mean over 128 steps has come within 2 % of the mean of the last
quarter after the change. Seconds are those of a machine that other programs share.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import itertools
import time
import tokenize
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.common import machine_facts, print_table, write_json
from benchmarks.pictures import picture
from examples.bundled_model.corpus import read_standard_library, split_corpus
from numpy.typing import NDArray

from janus_moe.config import EngineConfig
from janus_moe.control.profiling import live
from janus_moe.control.service import Service
from janus_moe.messages import FromWorker, SamplingParams, StepDone

PROMPT_TOKENS, OUTPUT_TOKENS = 12, 36
RUNNING = 128  # steps of the running mean
TOLERANCE = 0.02
SHOWN = ("rebalancing", "before", "just after", "at the end", "steps to recover", "s to recover")

Slots = tuple[tuple[tuple[int, ...], ...], ...]


@dataclass(slots=True)
class Log:
    """Per step of attention instance 0: when, mean a_max of its layers, epoch.

    changed_at: the step at which the topic changed. placement: which served then.
    """

    times: list[float] = field(default_factory=list)
    a_max: list[float] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    changed_at: int = 0
    placement: Slots = ()

    def add(self, message: FromWorker) -> None:
        if not isinstance(message, StepDone) or message.activity is None:
            return
        if message.instance.index == 0:
            self.times.append(time.perf_counter())
            self.a_max.append(message.activity.max_activated / message.activity.layers)
            self.epochs.append(message.epoch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--before", type=int, default=2500, help="steps before the change")
    parser.add_argument("--after", type=int, default=5000, help="steps after it")
    parser.add_argument("--interval", type=float, default=1.0, help="--rebalance-interval")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, help="write a picture (needs matplotlib)")
    options = parser.parse_args()
    result = asyncio.run(measure(options))
    print_table([{key: run[key] for key in SHOWN} for run in result["runs"]])
    if options.json:
        write_json(options.json, {"machine": machine_facts(), **result})
    if options.plot:
        plot(result["runs"], options.plot)


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The same work for a service that rebalances and for one that does not."""
    texts, fitted, runs = topics(), None, []
    for interval in (options.interval, 0.0):
        async with running(interval) as (service, log):
            if fitted is not None:
                await move(service, fitted)
            await work(service, log, texts, options)
            fitted = log.placement
            runs.append(summary(log, "on" if interval else "off"))
            print({key: runs[-1][key] for key in SHOWN}, flush=True)
    return {
        "streams": options.streams,
        "rebalance_interval_s": options.interval,
        "running_mean_steps": RUNNING,
        "runs": runs,
    }


async def move(service: Service, slots: Slots) -> None:
    await service.rebalancer.rebalance(slots)
    while service.rebalancer.status.state != "idle":
        await asyncio.sleep(0.01)
    assert service.rebalancer.status.error is None


async def work(
    service: Service, log: Log, texts: Sequence[str], options: argparse.Namespace
) -> None:
    """Streams of short completions, about the first text and then about the second."""
    about = [service.engine.tokenizer.encode(text) for text in texts]
    topic = 0

    async def stream(index: int) -> None:
        rng = np.random.default_rng(index)
        sampling = SamplingParams(max_tokens=OUTPUT_TOKENS, temperature=0.7, ignore_eos=True)
        for number in itertools.count():
            ids = about[topic]
            start = int(rng.integers(0, len(ids) - PROMPT_TOKENS))
            prompt = ids[start : start + PROMPT_TOKENS]
            async for _ in service.engine.submit(f"{index}-{number}", prompt, sampling):
                pass

    async def until(num_steps: int) -> None:
        while len(log.a_max) < num_steps:
            await asyncio.sleep(0.01)
            for task in streams:
                if task.done():
                    task.result()

    streams = [asyncio.create_task(stream(index)) for index in range(options.streams)]
    try:
        await until(options.before)
        log.changed_at, topic = len(log.a_max), 1
        log.placement = service.rebalancer.placement.slots
        await until(log.changed_at + options.after)
    finally:
        for task in streams:
            task.cancel()
        await asyncio.gather(*streams, return_exceptions=True)


def summary(log: Log, rebalancing: str) -> dict[str, Any]:
    """Levels, the way back, and the curve, every so-manieth step of it."""
    a_max, times, change = np.array(log.a_max), np.array(log.times), log.changed_at
    mean = running_mean(a_max)
    after = mean[change + RUNNING :]  # from the first mean with no step before the change
    level = float(a_max[change + 3 * (len(a_max) - change) // 4 :].mean())
    back = int(np.argmax(after <= (1 + TOLERANCE) * level)) + RUNNING
    switches = np.flatnonzero(np.diff(log.epochs)) + 1
    return {
        "rebalancing": rebalancing,
        "before": float(a_max[change // 2 : change].mean()),
        "just after": float(after[0]),
        "worst running mean after": float(after.max()),
        "at the end": level,
        "steps to recover": back,
        "s to recover": float(times[change + back] - times[change]),
        "ms per step": float(1e3 * np.diff(times).mean()),
        "new epochs at steps after the change": (switches - change).tolist(),
        "steps": (np.arange(len(mean))[::25] - change).tolist(),
        "running mean": mean[::25].round(4).tolist(),
    }


def running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the latest `RUNNING` steps, of fewer at the start."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - RUNNING)
    mean: NDArray[np.float64] = (total[ends] - total[starts]) / (ends - starts)
    return mean


def topics() -> tuple[str, str]:
    """(code, prose) of the held-out files."""
    parts = [divide(file.text) for file in split_corpus(read_standard_library()).held_out]
    return "\n".join(code for code, _ in parts), "\n".join(prose for _, prose in parts)


def divide(text: str) -> tuple[str, str]:
    """(the lines without comments and docstrings, the comments and docstrings)."""
    prose, lines = [], text.splitlines(keepends=True)
    previous = tokenize.NEWLINE
    spans = []
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    except (tokenize.TokenError, SyntaxError):
        return text, ""
    for token in tokens:
        starts = previous in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
        if token.type == tokenize.COMMENT or (token.type == tokenize.STRING and starts):
            spans.append((token.start, token.end))
            prose.append(token.string.strip("#'\"r "))
        if token.type not in (tokenize.NL, tokenize.COMMENT):
            previous = token.type
    for (first, left), (last, right) in reversed(spans):
        rest = lines[last - 1][right:]
        lines[first - 1 : last] = [lines[first - 1][:left] + rest]
    return "".join(line for line in lines if line.strip()), "\n".join(prose)


@contextlib.asynccontextmanager
async def running(interval_s: float) -> AsyncIterator[tuple[Service, Log]]:
    """A service and the log of its steps."""
    config = EngineConfig(
        attention_instances=2,
        expert_instances=4,
        redundant_experts=4,
        rebalance_interval=interval_s,
        rebalance_spare_slots=1,
        threads=1,
        max_model_len=256,
        prefix_caching="off",
        seed=1,
    )
    log = Log()
    async with live.running(config) as service:
        observe = service.rebalancer._observe

        def observe_and_log(message: FromWorker) -> None:
            log.add(message)
            observe(message)

        service.rebalancer._observe = observe_and_log  # type: ignore[method-assign]
        yield service, log


def plot(runs: Sequence[dict[str, Any]], path: Path) -> None:
    with picture(path, size=(9, 4)) as (_, [[axes]]):
        for run, colour in zip(runs, ("#bb2222", "#888888"), strict=True):
            label = f"rebalancing {run['rebalancing']}"
            axes.plot(run["steps"], run["running mean"], color=colour, lw=1.3, label=label)
        for number, step in enumerate(runs[0]["new epochs at steps after the change"]):
            name = None if number else "new epoch"
            axes.axvline(step, color="#bb2222", ls=":", lw=0.7, alpha=0.6, label=name)
        axes.axvline(0, color="black", lw=1, label="code, then comments and docstrings")
        axes.set_ylim(
            bottom=0.95 * min(min(run["running mean"][2:]) for run in runs)
        )  # warm-up off
        axes.set_xlabel("steps after the change of topic")
        axes.set_ylabel("activated experts of the busiest\ninstance, mean of 128 steps")
        axes.set_title(
            "Bundled model, 2 attention and 4 expert instances, 36 slots for 32 experts",
            fontsize=10,
        )
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)


if __name__ == "__main__":
    main()

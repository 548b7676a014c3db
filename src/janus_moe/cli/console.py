"""What people see in the terminal: the stages of start-up, then a line every ten seconds.

Works the same in a terminal and in a log file: lines, no cursor tricks.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console

from janus_moe.cluster.deployment_plan import DeploymentPlan
from janus_moe.cluster.service import Service
from janus_moe.engine.engine import Engine
from janus_moe.engine.snapshot import EngineSnapshot
from janus_moe.messages import Progress
from janus_moe.model.memory import attention_bytes, expert_pool_bytes
from janus_moe.server.run import HttpServer
from janus_moe.spec import Pool

REPORT_EVERY_S = 10.0
LOAD_LINE_EVERY_S = 1.0


class StartupView:
    """Prints what the start is doing, per pool, with bytes and the time that is left."""

    def __init__(
        self, console: Console | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._clock = clock
        self._began = clock()
        self._loading_since: float | None = None
        self._printed_at = 0.0
        self._totals: dict[str, int] = {}
        self._done: dict[str, int] = {}
        self._pools: dict[str, int] = {}
        self._stages: set[str] = set()
        self.url = ""

    def say(self, stage: str, text: str) -> None:
        """One line: seconds since the start, the stage, what there is to say."""
        elapsed = self._clock() - self._began
        self._console.print(
            f"[dim]{elapsed:6.1f}s[/] [bold cyan]{stage:<8}[/] {text}", soft_wrap=True
        )

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Announces a stage that gives no progress of its own."""
        self.say(name, "...")
        yield

    def plan(self, plan: DeploymentPlan) -> None:
        """What was decided, and what loading will read."""
        spec, config = plan.spec, plan.config
        self.say(
            "model",
            f"{plan.folder.name} ({spec.family}): {spec.num_layers} layers, "
            f"{len(spec.moe_layer_ids)} of them MoE, {spec.moe.num_experts} experts "
            f"top-{spec.moe.router.top_k}, context {plan.max_model_len}",
        )
        self.say("shape", f"{plan.membership.shape}: {_pool_text(plan)}")
        if plan.choices:
            self.say("auto", "; ".join(plan.choices))
        for instance in plan.membership.attention:
            self._totals[str(instance)] = attention_bytes(spec)
        for rank, instance in enumerate(plan.membership.expert):
            slots = [layer[rank] for layer in plan.placement.slots]
            self._totals[str(instance)] = expert_pool_bytes(spec, slots)
        self.say("spawn", f"{len(self._totals)} instances, transport {config.transport}")

    def progress(self, progress: Progress) -> None:
        """A worker's word on its own start-up."""
        now = self._clock()
        if progress.stage != "load":
            if progress.stage not in self._stages:
                self._stages.add(progress.stage)
                self.say(progress.stage, "compiling kernels (cached after the first time)")
            return
        self._loading_since = self._loading_since or now
        self._done[str(progress.instance)] = progress.done_bytes
        finished = progress.done_bytes >= self._totals.get(str(progress.instance), 0)
        if now - self._printed_at >= LOAD_LINE_EVERY_S or finished:
            self._printed_at = now
            self.say("load", self._load_text(now))

    def listening(self, server: HttpServer) -> None:
        """The socket is open; the workers are still loading."""
        self.url = server.url
        self.say("http", f"{server.url} (answers 503 until ready)")

    def ready(self, service: Service) -> None:
        pids = ", ".join(f"{name} pid {pid}" for name, pid in service.pids.items())
        self.say("workers", pids)
        self.say("ready", f"[green]{self.url}/v1 takes requests[/]")

    def _load_text(self, now: float) -> str:
        parts = []
        for pool in ("attention", "expert"):
            total = sum(v for k, v in self._totals.items() if k.startswith(pool))
            done = sum(v for k, v in self._done.items() if k.startswith(pool))
            parts.append(f"{pool} {_size(done)} of {_size(total)}")
        done, total = sum(self._done.values()), sum(self._totals.values())
        elapsed = now - (self._loading_since or now)
        eta = f", {elapsed * (total - done) / done:.0f} s left" if done and elapsed > 1 else ""
        return "; ".join(parts) + eta


async def report_throughput(engine: Engine, console: Console | None = None) -> None:
    """A line every ten seconds for as long as there is something to tell."""
    console = console or Console(stderr=True, highlight=False)
    before, since = engine.snapshot(), time.monotonic()
    while True:
        await asyncio.sleep(REPORT_EVERY_S)
        after, now = engine.snapshot(), time.monotonic()
        if after.generation_tokens != before.generation_tokens or after.running or after.waiting:
            console.print(throughput_line(before, after, now - since), soft_wrap=True)
        before, since = after, now


def throughput_line(before: EngineSnapshot, after: EngineSnapshot, seconds: float) -> str:
    """Rates between two snapshots, and the state at the second."""
    generated = (after.generation_tokens - before.generation_tokens) / seconds
    prompted = (after.prompt_tokens - before.prompt_tokens) / seconds
    mean, largest = _activated_between(before, after)
    return (
        f"{generated:7.1f} tok/s out, {prompted:7.1f} tok/s in | running {after.running}, "
        f"waiting {after.waiting} | KV {after.kv_usage:.0%} | activated experts per instance "
        f"{mean:.1f} mean, {largest:.1f} max"
    )


def _activated_between(before: EngineSnapshot, after: EngineSnapshot) -> tuple[float, float]:
    """(mean over instances, busiest instance) of distinct activated experts per layer pass."""
    passes = max(1, after.layer_passes - before.layer_passes)

    def per_pass(of: Callable[[EngineSnapshot], float]) -> float:
        return (of(after) * after.layer_passes - of(before) * before.layer_passes) / passes

    def mean(snapshot: EngineSnapshot) -> float:
        counts = snapshot.activated_experts
        return sum(counts.values()) / max(1, len(counts))

    return per_pass(mean), per_pass(lambda snapshot: snapshot.max_activated_experts)


def _pool_text(plan: DeploymentPlan) -> str:
    redundant, shape = plan.config.redundant_experts, plan.membership.shape
    return (
        f"{shape.attention} attention ({_threads(plan, 'attention')}), "
        f"{shape.expert} expert ({_threads(plan, 'expert')}, "
        f"{redundant} redundant experts per layer)"
    )


def _threads(plan: DeploymentPlan, pool: Pool) -> str:
    """Threads of an instance, which differ where hosts do."""
    counts = {
        plan.threads(host, pool)
        for host in plan.hosts
        if any(instance.pool == pool for instance in host.share.instances)
    }
    few, many = min(counts), max(counts)
    return f"{few} threads each" if few == many else f"{few} to {many} threads each"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"

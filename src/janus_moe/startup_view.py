"""What people see while a service starts: the stages, and how long the present one takes.

A terminal has one line that changes, a log file a line every ten seconds. It does not know who
starts the service, nor what comes after the start.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from janus_moe.cluster.deployment_plan import DeploymentPlan
from janus_moe.messages import Progress
from janus_moe.model.memory import attention_bytes, expert_pool_bytes
from janus_moe.spec import Pool

LOAD_LINE_EVERY_S = 1.0
LINE_EVERY_S = 10.0
FRAMES_PER_S = 4
STAGES = {
    "resolve": "reading settings and checkpoint",
    "spawn": "starting workers",
    "load": "reading weights",
    "warm up": "compiling kernels (cached after the first time)",
}
"""Stages that take time, in their order, and what happens in them."""


class StartupView:
    """Prints what a start is doing, per pool, with bytes and the time that is left.

    In a `with` block it also shows the seconds that the present stage has taken, until `close`.

    console: where to print; None means standard error
    clock: seconds, only differences count
    quiet_s: seconds from the beginning in which nothing is printed
    """

    def __init__(
        self,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        quiet_s: float = 0.0,
    ) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._clock = clock
        self._quiet_s = quiet_s
        self._began = self._printed_at = clock()
        self._stage, self._stage_since = "resolve", self._began
        self._loading_since: float | None = None
        self._totals: dict[str, int] = {}
        self._done: dict[str, int] = {}
        self._end = threading.Event()
        self._watch = ExitStack()

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            live = Live(
                get_renderable=self._line,
                console=self._console,
                refresh_per_second=FRAMES_PER_S,
                transient=True,
            )
            self._watch.enter_context(live)
        else:
            thread = threading.Thread(target=self._print_lines, name="startup", daemon=True)
            thread.start()
            self._watch.callback(thread.join)
            self._watch.callback(self._end.set)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the line that changes; safe to call twice."""
        self._watch.close()

    def say(self, stage: str, text: str) -> None:
        """Prints one line: seconds since the start, the stage, what there is to say."""
        now = self._clock()
        if stage in STAGES:
            self._enter(stage, now)
        if now - self._began < self._quiet_s:
            return
        self._printed_at = now
        self._console.print(
            f"[dim]{now - self._began:6.1f}s[/] [bold cyan]{stage:<8}[/] {text}", soft_wrap=True
        )

    def plan(self, plan: DeploymentPlan) -> None:
        """Prints what was decided, and notes what loading will read."""
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
        """Takes what a worker says of its own start."""
        now = self._clock()
        if progress.stage != "load":
            if progress.stage != self._stage:
                self.say(progress.stage, STAGES.get(progress.stage, ""))
            return
        first = self._loading_since is None
        self._loading_since = now if self._loading_since is None else self._loading_since
        self._done[str(progress.instance)] = progress.done_bytes
        finished = progress.done_bytes >= self._totals.get(str(progress.instance), 0)
        if first or finished or now - self._printed_at >= LOAD_LINE_EVERY_S:
            self.say("load", self._load_text(now))

    def _enter(self, stage: str, now: float) -> None:
        """Notes the stage that the last instance has reached; workers are not equally fast."""
        order = list(STAGES)
        if order.index(stage) > order.index(self._stage):
            self._stage, self._stage_since = stage, now

    def _waiting(self, now: float) -> str:
        return f"{STAGES[self._stage]}, {now - self._stage_since:.0f} s so far"

    def _line(self) -> Text:
        """Returns what a terminal shows at this moment."""
        now = self._clock()
        if now - self._began < self._quiet_s:
            return Text()
        elapsed = Text(f"{now - self._began:6.1f}s ", style="dim")
        return elapsed.append(f"{self._stage:<8} {self._waiting(now)}")

    def _print_lines(self) -> None:
        """Prints a line whenever nothing was printed for a while."""
        while not self._end.wait(min(1.0, LINE_EVERY_S / 4)):
            now = self._clock()
            if now - self._printed_at >= LINE_EVERY_S:
                self.say(self._stage, self._waiting(now))

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

"""A plan for people and for files: tables, a frontier of characters, JSON, settings, plots."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from janus_moe.cli.plan_plots import plot_frontiers, text_frontiers
from janus_moe.cli.prices import dollars_per_hour, dollars_per_million
from janus_moe.errors import ConfigError
from janus_moe.planner.latency import Profile, ServeSource
from janus_moe.planner.search.answers import Deployment
from janus_moe.planner.search.explain import memory_parts, prefill_s, prompt_step_s, step_estimate
from janus_moe.planner.search.measured import machine_oracle
from janus_moe.planner.search.pareto import FrontierPoint, monolithic_frontier, pools_frontier
from janus_moe.planner.search.problem import MonolithicStyle, PoolStyle, Problem
from janus_moe.planner.search.ratio import closed_form, cross_check, linear_times
from janus_moe.planner.search.recommend import Recommendation, on_one_device, wanted_text
from janus_moe.planner.search.serve_settings import serve_yaml

_WORDS = ("shape", "exchange", "part", "purpose")
_PLAIN: dict[str, Any] = {"title_justify": "left", "box": SIMPLE_HEAD, "padding": (0, 1, 0, 0)}


@dataclass(frozen=True, kw_only=True)
class PlanReport:
    """A plan as people and programs read it.

    model: as it was asked for
    source: what `janus serve` takes for it
    note: said beside figures
    profile: the measured machine it is for; None means devices of the catalogue
    """

    plan: Recommendation
    style: PoolStyle
    model: str
    source: ServeSource
    note: str = ""
    profile: Profile | None = None

    @cached_property
    def frontiers(self) -> dict[str, list[FrontierPoint]]:
        problem = self.plan.problem
        if self.profile is not None:  # every shape has tables of its own
            return {}
        return {
            "pools": pools_frontier(problem, self.style),
            "monolithic": monolithic_frontier(problem, MonolithicStyle()),
        }

    def show(self, console: Console, explain: bool) -> None:
        """Prints everything, the most important first."""
        plan = self.plan
        console.print(self._question())
        if self.note:
            console.print(f"[yellow]{self.note}[/]")
        if plan.infeasible is not None:
            console.print(f"[bold red]not possible[/]: {plan.infeasible.reason}")
            if plan.infeasible.nearest is not None:
                self._show_deployments(console, "nearest", [plan.infeasible.nearest])
            return
        assert plan.verdict is not None
        listed = [*plan.pools, *([plan.monolithic] if plan.monolithic else [])]
        title = "deployments: the best pools"
        if plan.monolithic is not None:
            title += f", and the monolithic {plan.monolithic.shape}"
        self._show_deployments(console, title, listed)
        if self.profile is None:
            console.print(f"[bold]verdict: {plan.verdict.headline}[/]")
        reasons = Table.grid(padding=(0, 1))
        for reason in plan.verdict.reasons if self.profile is None else ():
            reasons.add_row("  -", reason)
        console.print(reasons)
        best = plan.best
        assert best is not None
        self._warn_of_chunks(console, best)
        if explain:
            for one in [best, *(d for d in listed[:1] if d != best)]:
                self._explain(console, one)
        if self.frontiers:
            console.print(text_frontiers(self.frontiers))
        for why in self.source.obstacles:
            console.print(f"[yellow]`janus serve` cannot serve {self.model}[/]: {why}")

    def as_json(self) -> dict[str, Any]:
        """Returns all figures; none of them is NaN."""
        plan, problem = self.plan, self.plan.problem
        verdict = plan.verdict
        return {
            "question": {
                "model": self.model,
                "system": problem.oracle.attention_side.device.name,
                "expert_system": problem.oracle.expert_side.device.name,
                "isl": problem.lengths.isl,
                "osl": problem.lengths.osl,
                "tpot_ms": 1e3 * problem.tpot_s,
                "ttft_ms": None if problem.ttft_s is None else 1e3 * problem.ttft_s,
                "demand": wanted_text(problem.demand),
                "max_gpus": problem.max_gpus,
                "prefill": problem.prefill,
                "routing": problem.activation.name,
                "calibration": self.note or "honest",
                "expert_weights": problem.oracle.model.expert_format.name,
            },
            "pools": [self._figures(one) for one in plan.pools],
            "monolithic": self._figures(plan.monolithic) if plan.monolithic else None,
            "verdict": None
            if verdict is None
            else {
                "disaggregate": verdict.disaggregate,
                "gain": None if math.isnan(verdict.gain) else verdict.gain,
                "reasons": list(verdict.reasons),
            },
            "infeasible": None
            if plan.infeasible is None
            else {
                "reason": plan.infeasible.reason,
                "nearest": self._figures(plan.infeasible.nearest)
                if plan.infeasible.nearest
                else None,
            },
            "closed_form": self._closed_form(),
            "frontiers": {
                name: [asdict(point) for point in points] for name, points in self.frontiers.items()
            },
        }

    def save(self, folder: Path) -> list[Path]:
        """Writes plan.json, the recommended settings, and plots where matplotlib is installed."""
        written = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            written.append(folder / "plan.json")
            written[-1].write_text(json.dumps(self.as_json(), indent=1) + "\n", encoding="utf-8")
            if self.plan.best is not None:
                written.append(folder / "serve.yaml")
                text = serve_yaml(self._problem_of(self.plan.best), self.plan.best, self.source)
                written[-1].write_text(text, encoding="utf-8")
            plot = folder / "pareto.png"
            if self.frontiers and plot_frontiers(self.frontiers, plot):
                written.append(plot)
        except OSError as error:
            raise ConfigError(f"{folder} cannot be written: {error.strerror}") from None
        return written

    # Parts

    def _question(self) -> str:
        problem = self.plan.problem
        oracle = problem.oracle
        devices = f"{problem.max_gpus} {oracle.attention_side.device.title}"
        if self.profile is not None:
            devices = f"{problem.max_gpus} instances on one machine"
        if oracle.expert_side.device.name != oracle.attention_side.device.name:
            devices += f" and {oracle.expert_side.device.title} for experts"
        first = ""
        if problem.ttft_s is not None:
            first = f" and {1e3 * problem.ttft_s:g} ms to the first on average"
        prompts = "prefill excluded: prompts take no time of these GPUs"
        if problem.prefill == "included":
            chunk = problem.batching.max_prompt_tokens
            prompts = f"prompts computed among decode steps, up to {chunk:,} tokens at a time"
        return (
            f"{oracle.model.name} ({oracle.model.expert_format.name} experts) on up to "
            f"{devices}: {wanted_text(problem.demand)}, "
            f"{problem.lengths.isl:g} tokens in, {problem.lengths.osl:g} out, at most "
            f"{1e3 * problem.tpot_s:g} ms per token{first}; {problem.activation.name}; {prompts}."
        )

    def _show_deployments(
        self, console: Console, title: str, deployments: Sequence[Deployment]
    ) -> None:
        """Prints two tables that each fit 80 columns: what deployments serve, and how."""
        console.print(_table_of(title, [self._served(one) for one in deployments]))
        console.print(_table_of("how they work", [self._how(one) for one in deployments]))

    def _served(self, one: Deployment) -> dict[str, str]:
        return {
            "shape": one.shape,
            "GPUs" if self.profile is None else "instances": str(one.gpus),
            "batch": f"{one.copies * one.batch:,.0f}",
            "TPOT ms": f"{1e3 * one.tpot_s:.1f}",
            "TTFT ms": f"{1e3 * self._first_token_s(one):,.0f}",
            "tok/s": f"{one.tokens_per_s:,.0f}",
            "/GPU": f"{one.tokens_per_s_per_gpu:,.0f}",
            "/user": f"{one.tokens_per_s_per_user:.1f}",
        }

    def _how(self, one: Deployment) -> dict[str, str]:
        per_hour, per_million = self._dollars(one)
        cells = {
            "shape": one.shape,
            "exchange": one.exchange_plan,
            "micro": str(one.micro_batches),
            "slots": str(one.slots),
            "a_max": f"{one.activated:.1f}",
            "confidence": step_estimate(self._problem_of(one), one).tpot.confidence,
        }
        if per_hour is not None and per_million is not None:
            cells |= {"$/h": f"{per_hour:,.2f}", "$/Mtok": f"{per_million:,.2f}"}
        return cells

    def _warn_of_chunks(self, console: Console, one: Deployment) -> None:
        """Warns where a step with prompts is longer than the objective: TPOT is a mean."""
        problem = self._problem_of(one)
        if problem.prefill == "excluded" or (took := prompt_step_s(problem, one)) <= problem.tpot_s:
            return
        console.print(
            f"[yellow]a step with prompts takes {1e3 * took:.0f} ms, above "
            f"{1e3 * problem.tpot_s:g} ms[/]: the mean holds, but while prompts arrive in bursts "
            "no request beside them is in time; lower --max-num-batched-tokens "
            f"({problem.batching.max_prompt_tokens:,}) for shorter steps and a later first token"
        )

    def _explain(self, console: Console, one: Deployment) -> None:
        problem = self._problem_of(one)
        step = step_estimate(problem, one)
        layers = problem.oracle.model.num_moe_layers
        rows = [
            {
                "part": part,
                "us per step": f"{micros:,.0f}",
                "us per layer": f"{1e6 * step.layer[part].seconds:,.1f}"
                if part in step.layer
                else "",
                "share": f"{share:.1%}",
                "confidence": confidence,
            }
            for part, micros, share, confidence in step.explain()
        ]
        whole = {
            "part": "all",
            "us per step": f"{1e6 * step.tpot.seconds:,.0f}",
            "us per layer": "",
        }
        rows.append({**whole, "share": "", "confidence": step.tpot.confidence})
        console.print(_table_of(f"{one.shape}: where a step goes", rows))
        console.print(
            f"Dependencies alone take {1e6 * step.bound_s:,.0f} us; {layers} MoE layers; a layer's "
            "times are those of one micro-batch; what overlaps counts only where it is seen."
        )
        parts = memory_parts(problem, one)
        needs = [
            {"purpose": purpose}
            | {f"{k} (x{n})": f"{own[purpose] / 1e9:,.2f}" for k, (n, own) in parts.items()}
            for purpose in next(iter(parts.values()))[1]
        ]
        console.print(_table_of(f"{one.shape}: GB on each instance", needs))
        if one.kind == "pools":
            console.print(cross_check(problem, one))

    def _closed_form(self) -> dict[str, float | str] | None:
        """r* beside the best pools; None: no pools, or no largest ratio."""
        if not self.plan.pools:
            return None
        best = self.plan.pools[0]
        ratio = closed_form(linear_times(self._problem_of(best), best))
        if math.isinf(ratio.r):
            return None
        return {**asdict(ratio), "r": ratio.r, "regime": ratio.regime}

    def _figures(self, one: Deployment) -> dict[str, Any]:
        problem = self._problem_of(one)
        step = step_estimate(problem, one)
        return {
            "shape": one.shape,
            **asdict(one),
            "gpus": one.gpus,
            "tokens_per_s": one.tokens_per_s,
            "tokens_per_s_per_gpu": one.tokens_per_s_per_gpu,
            "tokens_per_s_per_user": one.tokens_per_s_per_user,
            "ttft_s": self._first_token_s(one),
            "dollars_per_hour": self._dollars(one)[0],
            "dollars_per_million_tokens": self._dollars(one)[1],
            "confidence": step.tpot.confidence,
            "microseconds": {
                part: {"step": micros, "share": share, "confidence": confidence}
                for part, micros, share, confidence in step.explain()
            },
            "bytes": {
                name: {"instances": instances, **own}
                for name, (instances, own) in memory_parts(problem, one).items()
            },
        }

    def _problem_of(self, one: Deployment) -> Problem:
        problem = self.plan.problem
        if self.profile is not None:
            oracle = machine_oracle(self.profile, one.num_attention, one.num_expert)
            return replace(problem, oracle=oracle)
        return on_one_device(problem) if one.kind == "monolithic" else problem

    def _dollars(self, one: Deployment) -> tuple[float | None, float | None]:
        """Returns dollars (per hour, per million output tokens); None: a price is not known."""
        problem = self._problem_of(one)
        return dollars_per_hour(problem, one), dollars_per_million(problem, one)

    def _first_token_s(self, one: Deployment) -> float:
        """Returns the mean TTFT; that of one prompt alone where other devices compute prompts."""
        problem = self._problem_of(one)
        return one.ttft_s if problem.prefill == "included" else prefill_s(problem, one)


def _table_of(title: str, rows: Sequence[Mapping[str, str]]) -> Table:
    """Returns a table of rows with the same columns; missing cells are dashes."""
    table = Table(title=title, **_PLAIN)
    names = dict.fromkeys(name for row in rows for name in row)
    for name in names:
        justify: Literal["left", "right"] = "left" if name in _WORDS else "right"
        table.add_column(name, justify=justify)
    for row in rows:
        table.add_row(*(row.get(name, "-") for name in names))
    return table

"""A whole profile: tables of both pools, then live runs whose rest is host and exchange."""

from __future__ import annotations

import itertools
import os
import platform
import random
from collections.abc import Callable, Mapping, Sequence
from statistics import median

import msgspec
import torch

from janus_moe.planner.latency import Oracle, Profile
from janus_moe.planner.latency.calibration import LiveCell, calibrate
from janus_moe.planner.latency.coefficients import LinkLaw
from janus_moe.planner.latency.duration_grid import DurationGrid
from janus_moe.planner.latency.profile import AttentionTables, ExpertTables, HostLaw
from janus_moe.profiling.live import Decoded, decode, running
from janus_moe.profiling.plan import (
    TOKENS_PER_EXPERT,
    Job,
    LiveRun,
    ProfiledOperation,
    ProfilePlan,
    TimingTask,
)
from janus_moe.profiling.pools import TimedPool, timed_pool

OnStatus = Callable[[str], None]
LiveTimes = Mapping[LiveRun, dict[int, list[Decoded]]]
"""batch -> what was measured of it"""

PROMPT_TOKENS, DECODE_TOKENS, LIVE_ROUNDS, LIVE_STARTS = 32, 32, 5, 2
DEVICES = {"cpu": "cpu", "cuda": "h200_sxm"}
"""Facts that stand for the device where tables say nothing, such as memory."""


async def run_profile(plan: ProfilePlan, say: OnStatus) -> Profile:
    """Takes two or three minutes. say: told what is being measured, and how well it fits."""
    tables = await run_tables(plan, say)
    runs: LiveTimes = {live: {} for live in plan.live}
    for _ in range(LIVE_STARTS):  # a service keeps the luck of its start: placing, huge pages
        for live, done in runs.items():
            say(f"live: {live.shape} over {live.config.transport}, batches {live.batches}")
            for batch, times in (await live_times(live, tables.model.vocab_size)).items():
                done.setdefault(batch, []).extend(times)
    profile = calibrated(tables, runs)
    for cell, fitted in zip(live_cells(tables, runs), live_cells(profile, runs), strict=True):
        say(
            f"{cell.shape} over {cell.transport}, batch {cell.batch}: "
            f"{1e3 * cell.measured_s:.2f} ms a step, fitted {1e3 * fitted.explained_s:.2f}"
        )
    return profile


async def run_tables(plan: ProfilePlan, say: OnStatus) -> Profile:
    """Single operations only: a profile whose services and exchanges take no time of their own."""
    attention, expert = {}, {}
    for count, jobs in plan.attention_jobs.items():
        say(f"attention side, {count} at once with {jobs[0].num_threads} threads each")
        attention[count] = await attention_tables(plan, jobs)
    for count, jobs in plan.expert_jobs.items():
        say(f"expert side, {count} at once with {jobs[0].num_threads} threads each")
        expert[count] = await expert_tables(plan, jobs)
    nothing = LinkLaw(latency_s=0.0, message_s=0.0, s_per_byte=0.0)
    return Profile(
        machine=machine(),
        device=DEVICES[plan.config.device],
        model=msgspec.structs.replace(plan.spec, name=plan.config.model),
        attention=attention,
        expert=expert,
        hosts={run.config.transport: HostLaw(step_s=0.0, token_s=0.0) for run in plan.live},
        exchanges={run.config.transport: nothing for run in plan.live},
    )


def calibrated(tables: Profile, runs: LiveTimes) -> Profile:
    """With what the tables leave unexplained of live services."""
    hosts, exchanges = calibrate(live_cells(tables, runs))
    return msgspec.structs.replace(tables, hosts=hosts, exchanges=exchanges)


async def attention_tables(plan: ProfilePlan, jobs: Sequence[Job]) -> AttentionTables:
    """Tables of attention instances that compute at the same time."""
    async with timed_pool(jobs) as pool:
        spec, tokens = plan.spec, plan.tokens
        return AttentionTables(
            layer=await _grid(plan, pool, "attention", tokens, plan.contexts),
            head=await _grid(plan, pool, "head", tokens),
            dense=await _grid(plan, pool, "dense", tokens) if spec.num_dense_layers else None,
            shared=await _grid(plan, pool, "shared", tokens)
            if spec.moe.shared_intermediate_size
            else None,
        )


async def expert_tables(plan: ProfilePlan, jobs: Sequence[Job]) -> ExpertTables:
    """Tables of expert instances that compute at the same time."""
    most = plan.tokens[-1] * max(plan.attention_jobs)
    rows = tuple(dict.fromkeys((*plan.tokens, most)))
    async with timed_pool(jobs) as pool:
        activated = plan.activated(jobs[0].num_instances)
        return ExpertTables(
            gate=await _grid(plan, pool, "gate", rows),
            experts=await _grid(plan, pool, "experts", activated, TOKENS_PER_EXPERT),
        )


async def live_times(live: LiveRun, vocab_size: int) -> dict[int, list[Decoded]]:
    """Decodes with one service, its batches by turns. batch -> what was measured of it."""
    times: dict[int, list[Decoded]] = {batch: [] for batch in live.batches}
    generator = random.Random(0)
    async with running(live.config) as service:
        for turn in range(LIVE_ROUNDS + 1):
            for batch in live.batches:
                prompts = [
                    [generator.randrange(vocab_size) for _ in range(PROMPT_TOKENS)]
                    for _ in range(batch)
                ]
                done = await decode(service, prompts, DECODE_TOKENS)
                if turn:  # the first one warms up
                    times[batch].append(done)
    return times


def live_cells(profile: Profile, runs: LiveTimes) -> list[LiveCell]:
    """Medians, beside what the profile explains of them."""
    cells = []
    for live, times in runs.items():
        shape, transport = live.shape, live.config.transport
        oracle = Oracle.from_profile(profile, shape.attention, shape.expert, transport)
        for batch, rounds in times.items():
            activated = median(done.activated for done in rounds)
            load = oracle.pools_load(
                batch, rounds[0].context, shape.attention, shape.expert, activated, plan="1pc"
            )
            cells.append(
                LiveCell(
                    transport=transport,
                    shape=str(shape),
                    batch=batch,
                    measured_s=median(done.seconds for done in rounds),
                    explained_s=float(oracle.step_s(load)),
                    counts=oracle.counts(batch, shape.attention, shape.expert, plan="1pc"),
                    num_exchanges=profile.model.num_moe_layers,
                )
            )
    return cells


def machine() -> dict[str, str]:
    """What the durations hold for."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts = {
        "processor": platform.processor() or platform.machine(),
        "cores": str(cores),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch": str(torch.__version__),
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


async def _grid(
    plan: ProfilePlan, pool: TimedPool, operation: ProfiledOperation, *axes: Sequence[int]
) -> DurationGrid:
    """Times an operation at every combination of sizes."""
    times: dict[tuple[int, ...], float] = {}
    for sizes in itertools.product(*axes):
        times[sizes] = await pool.seconds(TimingTask(operation, sizes, plan.budget_s))
    return DurationGrid.measured(axes, lambda *sizes: times[sizes])

"""A whole profile: tables of both pools, then live runs whose rest is host and exchange."""

from __future__ import annotations

import itertools
import os
import platform
import random
from collections.abc import Callable, Sequence

import torch

from janus_moe.control.profiling.live import Decoded, decode, running
from janus_moe.control.profiling.plan import (
    TOKENS_PER_EXPERT,
    Cell,
    Job,
    LiveRun,
    Operation,
    ProfilePlan,
)
from janus_moe.control.profiling.pools import TimedPool, timed_pool
from janus_moe.perf import Oracle, Profile
from janus_moe.perf.calibration import LiveCell, calibrate
from janus_moe.perf.checkpoint import facts_of_spec
from janus_moe.perf.coefficients import LinkLaw
from janus_moe.perf.profile import AttentionTables, ExpertTables, HostLaw
from janus_moe.perf.tables import Grid

Say = Callable[[str], None]

PROMPT_TOKENS, DECODE_TOKENS, LIVE_ROUNDS = 32, 24, 4
DEVICES = {"cpu": "cpu", "cuda": "h200_sxm"}
"""Facts that stand for the device where tables say nothing, such as memory."""


async def run_profile(plan: ProfilePlan, say: Say) -> Profile:
    """Takes a minute or two. say: told what is being measured."""
    attention, expert = {}, {}
    for count, jobs in plan.attention_jobs.items():
        say(f"attention side, {count} at once with {jobs[0].num_threads} threads each")
        attention[count] = await attention_tables(plan, jobs)
    for count, jobs in plan.expert_jobs.items():
        say(f"expert side, {count} at once with {jobs[0].num_threads} threads each")
        expert[count] = await expert_tables(plan, jobs)
    nothing = LinkLaw(latency_s=0.0, message_s=0.0, s_per_byte=0.0)
    profile = Profile(
        machine=machine(),
        device=DEVICES[plan.config.device],
        model=facts_of_spec(plan.spec, plan.config.model),
        attention=attention,
        expert=expert,
        hosts={run.config.transport: HostLaw(step_s=0.0, token_s=0.0) for run in plan.live},
        exchanges={run.config.transport: nothing for run in plan.live},
    )
    cells: list[LiveCell] = []
    for live in plan.live:
        say(f"live: {live.config.shape} over {live.config.transport}, batches {live.batches}")
        cells += await live_cells(profile, live)
    hosts, links = calibrate(cells)
    return Profile(
        machine=profile.machine,
        device=profile.device,
        model=profile.model,
        attention=attention,
        expert=expert,
        hosts=hosts,
        exchanges=links,
    )


async def attention_tables(plan: ProfilePlan, jobs: Sequence[Job]) -> AttentionTables:
    """Tables of attention instances that compute at the same time."""
    async with timed_pool(jobs) as pool:
        spec, tokens = plan.spec, plan.tokens
        return AttentionTables(
            layer=await _grid(plan, pool, "attention", tokens, plan.contexts),
            head=await _grid(plan, pool, "head", tokens),
            dense=None if all(spec.moe_layers) else await _grid(plan, pool, "dense", tokens),
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


async def live_cells(profile: Profile, live: LiveRun) -> list[LiveCell]:
    """Decodes with one service, each batch in its median round; the rest of each step is what the
    tables leave unexplained."""
    config, model = live.config, profile.model
    shape, transport = config.shape, config.transport
    oracle = Oracle.from_profile(profile, shape.attention, shape.expert, transport)
    runs: dict[int, list[Decoded]] = {batch: [] for batch in live.batches}
    async with running(config) as service:
        generator = random.Random(0)
        for _ in range(LIVE_ROUNDS + 1):  # the first round warms up
            for batch in live.batches:
                prompts = [
                    [generator.randrange(model.vocab_size) for _ in range(PROMPT_TOKENS)]
                    for _ in range(batch)
                ]
                runs[batch].append(await decode(service, prompts, DECODE_TOKENS))
    cells = []
    for batch, rounds in runs.items():
        done = sorted(rounds[1:], key=lambda one: one.seconds)[LIVE_ROUNDS // 2]
        load = oracle.pools_load(
            batch, done.context, shape.attention, shape.expert, done.activated, plan="1pc"
        )
        cells.append(
            LiveCell(
                transport=transport,
                batch=batch,
                measured_s=done.seconds,
                explained_s=float(oracle.step_s(load)),
                counts=oracle.counts(batch, shape.attention, shape.expert, plan="1pc"),
                num_exchanges=model.num_moe_layers,
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
    plan: ProfilePlan, pool: TimedPool, operation: Operation, *axes: Sequence[int]
) -> Grid:
    """Times an operation at every combination of sizes."""
    times: dict[tuple[int, ...], float] = {}
    for sizes in itertools.product(*axes):
        times[sizes] = await pool.seconds(Cell(operation, sizes, plan.budget_s))
    return Grid.measured(axes, lambda *sizes: times[sizes])

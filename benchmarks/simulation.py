"""A day of requests on 64 GPUs is simulated in less than a minute.

    python -m benchmarks.simulation --json benchmarks/results/simulation.json

The workload is synthetic: 24 hours, a daily cycle with bursts to 7.5 times the mean, 16 tokens in
and 256 out (arXiv 2512.13525, section 7); DeepSeek-V2 on H100, times from the oracle. Both clocks
are reported: processor time is what a quiet machine would need. Planning and
building deployments are included, compiling is not. It says nothing about which policy is better.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from benchmarks.support.program import Result, flag, main

from janus_moe.planner.latency import Oracle
from janus_moe.planner.simulation.deployment import Deployments
from janus_moe.planner.simulation.generators import generate
from janus_moe.planner.simulation.max_activated import SampledMaxActivated
from janus_moe.planner.simulation.planned import planning_problem
from janus_moe.planner.simulation.policies import PolicyContext, named_policy
from janus_moe.planner.simulation.report import LatencyObjective, make_report
from janus_moe.planner.simulation.simulate import simulate
from janus_moe.planner.simulation.state import BatchLimits
from janus_moe.policy.synthetic import SyntheticRouter

TPOT_S = 0.15
POLICIES = ["janus", "sglang", "megascale-infer", "xdeepserve", "static:16A48E"]


def measure(options: argparse.Namespace) -> Result:
    oracle = Oracle.build("deepseek-v2", "h100_sxm")
    router = SyntheticRouter("topics", oracle.model.moe.num_experts, oracle.model.moe.router.top_k)
    short = generate("poisson", 1.0, 10.0)
    simulate(short, named_policy("janus", _choices(oracle, router), short))  # compiles
    return {"rows": [_row(name, oracle, router, options.rate) for name in options.policies]}


def _row(name: str, oracle: Oracle, router: SyntheticRouter, rate: float) -> dict[str, Any]:
    workload = generate("diurnal", rate, 86_400.0, seed=1)
    wall, processor = time.perf_counter(), time.process_time()
    policy = named_policy(name, _choices(oracle, router), workload)
    simulation = simulate(workload, policy)
    report = make_report(simulation, LatencyObjective(tpot_s=TPOT_S))
    return {
        "policy": name,
        "requests": report.figures["completed"],
        "steps": report.figures["num_steps"],
        "most_gpus": report.figures["max_gpus"],
        "wall_s": time.perf_counter() - wall,
        "processor_s": time.process_time() - processor,
    }


def _choices(oracle: Oracle, router: SyntheticRouter) -> PolicyContext:
    limits, max_activated = (
        BatchLimits(16, 1024, 2048),
        SampledMaxActivated(router.batch, oracle.model.moe.num_experts),
    )
    return PolicyContext(
        deployments=Deployments(oracle, max_activated, limits),
        problem=planning_problem(oracle, router.batch, limits, TPOT_S, 64),
    )


if __name__ == "__main__":
    main(
        __doc__,
        measure,
        flag("--rate", type=float, default=30.0, help="mean requests/s"),
        flag("--policies", nargs="+", default=POLICIES),
    )

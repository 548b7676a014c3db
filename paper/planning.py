"""Questions to the planner with the paper's workload, and its answers as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from janus_moe.planner.search.activation import CachedActivation
from janus_moe.planner.search.answers import Answer, Deployment
from janus_moe.planner.search.baselines import CONFIGS, BaselineName, BaselinePlanner
from janus_moe.planner.search.memory import most_slots
from janus_moe.planner.search.problem import (
    Concurrency,
    MonolithicStyle,
    PoolStyle,
    Problem,
    RequestLengths,
)
from janus_moe.planner.search.sampled import SampledActivation
from janus_moe.planner.search.search import PoolSearch
from paper.figure import Data
from paper.routing import SLOTS, like_paper, popular
from paper.settings import MODEL, OUTPUT, PROMPT, CalibrationName, idle_surplus_oracle, oracle

GPUS = 32
SYSTEMS: tuple[BaselineName, ...] = (
    *("janus", "sglang", "sglang-dp"),
    *("megascale-infer", "xdeepserve"),
)
MICRO_BATCHES: dict[CalibrationName, int] = {"fitted": 2, "paper": 1}
JANUS_STYLE = PoolStyle(slots=SLOTS, micro_batches=(1,))
"""The paper's: 27 slots, no micro-batches."""
OBSERVED = 16_384


class Question(NamedTuple):
    """One cell of a figure is asked of the planner.

    batch: requests at once.
    objective_s: seconds per token.
    spread: of the experts' popularity; None means the paper's.
    idle_surplus: see `settings.idle_surplus_oracle`.
    """

    calibration: CalibrationName
    batch: float
    objective_s: float
    model: str = MODEL
    gpus: int = GPUS
    spread: float | None = None
    idle_surplus: bool = False


@lru_cache(None)
def activation(model: str, spread: float | None) -> CachedActivation:
    """Monte Carlo with the real scheduler and placement, on synthetic routing."""
    facts = oracle("fitted", model).model
    shape = facts.moe.num_experts, facts.moe.router.top_k
    sample = like_paper(*shape) if spread is None else popular(spread, *shape)
    ids = sample(OBSERVED, np.random.default_rng(3))
    counts = np.bincount(ids.ravel(), minlength=facts.moe.num_experts)[None, :]
    return CachedActivation(SampledActivation("synthetic", [sample], counts, OBSERVED))


def problem(question: Question) -> Problem:
    one = oracle(question.calibration, question.model)
    if question.idle_surplus:
        one = idle_surplus_oracle(question.model)
    return Problem(
        oracle=one,
        activation=activation(question.model, question.spread),
        lengths=RequestLengths(isl=PROMPT, osl=OUTPUT),
        prefill="excluded",  # the paper evaluates decoding only
        demand=Concurrency(question.batch),
        tpot_s=question.objective_s,
        max_gpus=question.gpus,
    )


def ask(system: BaselineName, question: Question) -> Answer:
    """The fewest GPUs that serve the batch within the objective."""
    asked = problem(question)
    return planner(system, asked, MICRO_BATCHES[question.calibration]).solve(asked)


def planner(system: BaselineName, asked: Problem, micro_batches: int = 1) -> BaselinePlanner:
    """Makes the planner of a system whose pools have all slots that memory holds.

    micro_batches: the most that a system may use, the same for all; the paper says nothing of
        overlap between micro-batches.
    """
    changes: dict[str, object] = {"micro_batches": tuple(range(1, micro_batches + 1))}
    if not isinstance(CONFIGS[system].style, MonolithicStyle):
        most = most_slots(asked.oracle, asked.memory)  # 27 for DeepSeek-V2, as in the paper
        changes["slots"] = min(most, asked.oracle.model.moe.num_experts)
    return BaselinePlanner.of(system, asked, **changes)


def described(answer: Answer) -> Data:
    """Plain values; a deployment that is not possible has shape None and a reason."""
    if not isinstance(answer, Deployment):
        return {"shape": None, "tpg": 0.0, "reason": answer.reason}
    return {
        "shape": answer.shape,
        "gpus": answer.gpus,
        "tpg": answer.tokens_per_s_per_gpu,
        "tpot_ms": 1e3 * answer.tpot_s,
        "a_max": answer.activated,
        "slots": answer.slots,
        "plan": answer.exchange_plan,
        "gating": answer.gating,
        "policy": answer.policy,
        "micro_batches": answer.micro_batches,
    }


def configuration(system: BaselineName) -> list[str]:
    return list(CONFIGS[system].lines())


def tpot_grid(
    question: Question, num_attention: Sequence[int], num_expert: Sequence[int]
) -> NDArray[np.float64]:
    """[attention, experts] seconds of every shape in the style of the paper's system."""
    search = PoolSearch(problem(question), JANUS_STYLE)
    n_a, n_e = np.array(num_attention)[:, None], np.array(num_expert)[None, :]
    batch = np.full((len(num_attention), len(num_expert)), float(question.batch))
    return np.asarray(search.shapes(n_a, n_e).tpot_s(batch).min(axis=0))


def style_of(system: BaselineName) -> PoolStyle:
    """Returns the style of a system with two pools."""
    style = CONFIGS[system].style
    assert isinstance(style, PoolStyle)
    return style


def shape_step(
    question: Question, style: PoolStyle, num_attention: int, num_expert: int
) -> tuple[float, float]:
    """(seconds, a_max) of a given shape, with the fastest of the style's exchange plans."""
    search = PoolSearch(problem(question), style)
    batch = np.array([float(question.batch)])
    shapes = search.shapes(np.array([num_attention]), np.array([num_expert]))
    steps, activated = shapes.tpot_s(batch)[:, 0], shapes.activated(batch)[:, 0]
    return min(zip(steps.tolist(), activated.tolist(), strict=True))

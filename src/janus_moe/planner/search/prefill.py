"""Prompts among the steps of decoding: how often a step has a chunk of one, and what it costs.

As in `policy.batching`, an attention instance adds chunks of prompts to the sequences that decode.
B sequences of `osl` tokens each bring x = B / (osl n) * isl prompt tokens per step to each of n
attention instances, in lumps:

    chunk   c = min(max(isl, x / MOST_BUSY), max_prompt_tokens)
    busy    q = x / c                              chance that an instance has one in a step
    share   P = 1 - (1 - q)^n                      chance that any has
    TPOT    (1 - P) * step(decoding) + P * step(decoding, with n q / P chunks)

All instances wait in lockstep for the one with a chunk, and the experts get all chunks. B is at
most what makes q `MOST_BUSY`: closer to 1, prompts queue for long. The queue itself is not in TPOT
but in TTFT, where an instance computes C = max_prompt_tokens - B / n prompt tokens per step:

    residual  E[s^2] / (2 E[s])                    of the step s under way when a prompt arrives
    queue     w * isl / C * mixed                  prompts before it, r = x / C
    own       ceil(isl / C) * mixed                its chunks; the last one gives the first token

with mixed = step(decoding, with chunks) and w half way between n queues, M/D/1: r / (2 (1 - r)),
and one queue, M/D/n: r^(sqrt(2 (n + 1)) - 1) / (2 n (1 - r)) (Sakasegawa 1977,
doi.org/10.1007/BF02532775): a prompt goes where fewest requests are, not where it starts first. A
mean; lengths that vary or bursts make it longer. What a step takes is the oracle's business.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from janus_moe.planner.latency.arrays import Array, Numbers
from janus_moe.planner.latency.prompts import chunk_positions, pair_cost
from janus_moe.planner.latency.step import StepLoad
from janus_moe.planner.search.problem import Problem

MOST_BUSY = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class MixedStep:
    """A step in which prompts are computed.

    rows: tokens on all attention instances.
    tokens, context, logits: of an instance that has a chunk, as in `planner.latency.step.StepLoad`.
    """

    rows: Array
    tokens: Array
    context: Array
    logits: Array


def with_prompts(load: StepLoad, step: MixedStep) -> StepLoad:
    """The same rows for the experts, with chunks of prompts among them."""
    return replace(load, attention_tokens=step.tokens, context=step.context, logits=step.logits)


def most_sequences(problem: Problem, num_attention: Numbers) -> Array:
    """That may decode at once by the limits of a step, whatever memory holds."""
    batching = problem.batching
    most = np.inf if batching.max_sequences is None else float(batching.max_sequences)
    if _counted(problem):
        per_sequence = problem.lengths.isl / problem.lengths.osl
        most = min(most, MOST_BUSY * batching.max_prompt_tokens / per_sequence)
    return np.asarray(most * np.asarray(num_attention, np.float64))


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Seconds that deployments take.

    tpot: mean of a step.
    ttft: mean to the first token of a request, infinite where prompts arrive faster than they are
        computed.
    mixed: a step with prompts.
    """

    tpot: Array
    ttft: Array
    mixed: Array

    def scaled_latency(self, problem: Problem) -> Array:
        """TPOT, or what it would be if it were as near its objective as TTFT is: both objectives
        are met where it is at most that of TPOT."""
        if problem.ttft_s is None:
            return self.tpot
        return np.maximum(self.tpot, self.ttft * (problem.tpot_s / problem.ttft_s))


def step_times(
    problem: Problem,
    batch: Numbers,
    num_attention: Numbers,
    decode_s: Array,
    step_s: Callable[[MixedStep], Array],
    tp: Numbers = 1,
) -> StepTimes:
    """TPOT as a mean over steps with and without prompts, and TTFT. All broadcast.

    batch: sequences that decode.
    decode_s: a step without prompts.
    step_s: of a step with them.
    tp: devices that share the heads of an attention instance.
    """
    if not _counted(problem):
        return StepTimes(decode_s, decode_s, decode_s)
    isl, most = problem.lengths.isl, float(problem.batching.max_prompt_tokens)
    sequences, instances = np.asarray(batch, np.float64), np.asarray(num_attention, np.float64)
    each = sequences / instances
    arriving = each / problem.lengths.osl * isl
    chunk = np.minimum(np.maximum(isl, arriving / MOST_BUSY), most)
    busy = np.minimum(arriving / chunk, 1 - 1e-12)
    share = -np.expm1(instances * np.log1p(-busy))
    tokens = each + chunk
    prompts = np.maximum(chunk / isl, 1.0)  # short ones, several in a chunk
    work = prompts * chunk_positions(pair_cost(problem.oracle, tp), chunk / prompts, isl)
    mixed = MixedStep(
        rows=np.asarray(sequences + instances * busy / share * chunk),
        tokens=np.asarray(tokens),
        context=np.asarray((each * problem.context + work) / tokens),
        logits=np.asarray(each),
    )
    longer = np.maximum(step_s(mixed) - decode_s, 0.0)
    mixed_s, tpot = decode_s + longer, np.asarray(decode_s + share * longer)
    residual = ((1 - share) * decode_s**2 + share * mixed_s**2) / (2 * tpot)
    per_step = np.maximum(most - each, 1.0)
    load = np.minimum(arriving / per_step, 1.0)
    free = np.maximum(1 - load, 1e-12)
    apart, together = load / (2 * free), load ** (np.sqrt(2 * (instances + 1)) - 1) / (2 * free)
    waiting = (apart + together / instances) / 2
    queue = np.where(load < 1, waiting * isl / per_step, np.inf)
    ttft = np.asarray(residual + (queue + np.ceil(isl / per_step)) * mixed_s)
    return StepTimes(tpot, ttft, mixed_s)


def _counted(problem: Problem) -> bool:
    """Less than a token is no prompt."""
    return problem.prefill == "included" and problem.lengths.isl >= 1

"""What the hidden states of a step say: next tokens and log-probabilities.

Nothing of it is kept here, so a step can still be dropped. It knows nothing of batching, caches or
the expert pool.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from torch import Tensor

from janus_moe.attention.logprobs import prompt_logprobs, token_logprobs
from janus_moe.attention.request import ActiveRequest
from janus_moe.attention.sampler import choose_tokens
from janus_moe.messages import TokenLogprob
from janus_moe.policy.batching import ScheduledSequence

LogitsOf = Callable[[Tensor], Tensor]
"""The LM head, [rows, hidden] -> [rows, vocabulary] float32."""


class NextToken(NamedTuple):
    """What a step that completes a sequence says of it.

    token_id: the token after it; None where only the prompt is scored.
    logprobs: of that token; None where the request does not want them.
    """

    request: ActiveRequest
    token_id: int | None
    logprobs: tuple[TokenLogprob, ...] | None


class StepOutput(NamedTuple):
    """All that a step produces.

    next_tokens: of the sequences that are complete, in the order of the step.
    prompt_entries: further log-probabilities of prompt tokens, by request.
    """

    next_tokens: list[NextToken]
    prompt_entries: list[tuple[ActiveRequest, list[TokenLogprob]]]


def read_hidden(
    hidden: Tensor,
    scheduled: Iterable[tuple[ScheduledSequence, ActiveRequest]],
    logits_of: LogitsOf,
) -> StepOutput:
    """Scores prompts, and samples where a sequence is complete.

    hidden: [tokens, hidden] after the last layer.
    scheduled: positions of the step and their requests, in the order of the rows.
    """
    complete: list[ActiveRequest] = []
    producing: list[ActiveRequest] = []
    rows: list[int] = []
    prompt_entries: list[tuple[ActiveRequest, list[TokenLogprob]]] = []
    row = 0
    for entry, request in scheduled:
        if request.wants_prompt_logprobs:
            own = hidden[row : row + entry.num_tokens]
            prompt_entries.append((request, _score_prompt(request, entry, own, logits_of)))
        row += entry.num_tokens
        if entry.samples:
            complete.append(request)
            if not request.scores_only:
                producing.append(request)
                rows.append(row - 1)
    sampled = iter(_sample(logits_of(hidden[rows]), producing) if rows else ())
    next_tokens = [
        NextToken(request, None, None) if request.scores_only else next(sampled)
        for request in complete
    ]
    return StepOutput(next_tokens, prompt_entries)


def _sample(logits: Tensor, requests: list[ActiveRequest]) -> list[NextToken]:
    """One token per request, and its log-probabilities where the request wants them."""
    chosen = choose_tokens(logits, [request.sampling_row() for request in requests])
    return [
        NextToken(request, token, _logprobs(request, token, logits[row : row + 1]))
        for row, (request, token) in enumerate(zip(requests, chosen, strict=True))
    ]


def _logprobs(
    request: ActiveRequest, token_id: int, logits: Tensor
) -> tuple[TokenLogprob, ...] | None:
    num_top = request.message.sampling.logprobs
    return None if num_top is None else tuple(token_logprobs(logits, [token_id], num_top))


def _score_prompt(
    request: ActiveRequest, entry: ScheduledSequence, hidden: Tensor, logits_of: LogitsOf
) -> list[TokenLogprob]:
    """Log-probabilities of the prompt tokens that follow the positions of this step."""
    sequence = request.sequence
    scored = len(request.prompt_entries) - 1  # positions whose successor has its entry
    first = max(entry.start, scored)  # a preempted prompt is computed again, not scored
    last = min(entry.start + entry.num_tokens, sequence.prompt_len - 1)
    if first >= last:
        return []
    return prompt_logprobs(
        hidden[first - entry.start : last - entry.start],
        sequence.token_ids[first + 1 : last + 1],
        request.message.sampling.prompt_logprobs or 0,
        logits_of,
    )

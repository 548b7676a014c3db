"""What an attention instance keeps of one request while it computes it.

Everything here can be rebuilt from the engine's copy of prompt and produced tokens. This module
knows nothing of tensors, batches or the expert pool.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from janus_moe.attention.sampler import SamplingRow
from janus_moe.messages import AddRequest, NewTokens, TokenLogprob
from janus_moe.policy.batching import Sequence


@dataclass(slots=True)
class ActiveRequest:
    """A request and how far it is.

    message: what was asked for.
    sequence: prompt and produced tokens, as the batcher sees them.
    max_length: tokens of prompt and output together, at most.
    prompt_entries: log-probabilities of the prompt so far, when asked for; the first is None.
    arrived_at: clock reading, seconds.
    started_at: clock reading at its first step, seconds; None before.
    announced: whether the engine has heard of a step of it.
    """

    message: AddRequest
    sequence: Sequence
    max_length: int
    prompt_entries: list[TokenLogprob | None] = field(default_factory=lambda: [None])
    arrived_at: float = 0.0
    started_at: float | None = None
    announced: bool = False

    @classmethod
    def admit(cls, message: AddRequest, max_model_len: int, now: float) -> ActiveRequest:
        """A request before its first step; `max_model_len` bounds prompt and output together."""
        own_prompt = len(message.prompt_ids) - message.position
        sequence = Sequence(
            request_id=message.request_id,
            token_ids=list(message.prompt_ids),
            prompt_len=own_prompt,
            needs_prompt_logits=message.sampling.prompt_logprobs is not None,
        )
        max_length = min(own_prompt + message.sampling.max_tokens, max_model_len)
        return cls(message, sequence, max_length, arrived_at=now)

    @property
    def wants_prompt_logprobs(self) -> bool:
        """True until the whole prompt has been scored."""
        entries_wanted = self.sequence.prompt_len
        asked = self.message.sampling.prompt_logprobs is not None
        return asked and len(self.prompt_entries) < entries_wanted

    @property
    def num_produced(self) -> int:
        return len(self.sequence.token_ids) - self.sequence.prompt_len

    @property
    def scores_only(self) -> bool:
        """max_tokens 0: the prompt is computed, nothing is produced."""
        return self.message.sampling.max_tokens == 0

    def sampling_row(self) -> SamplingRow:
        """What the choice of this request's next token depends on."""
        params = self.message.sampling
        too_early = self.num_produced < params.min_tokens
        return SamplingRow(
            params=params,
            token_ids=self.sequence.token_ids,
            prompt_len=self.sequence.prompt_len,
            seed=params.seed or 0,
            forbidden_ids=self._ending_ids() if too_early else (),
        )

    def outcome(self, token_id: int) -> tuple[str | None, int | None]:
        """(finish reason, stop token) once `token_id` is the newest token of the sequence."""
        params = self.message.sampling
        enough = self.num_produced >= params.min_tokens
        if enough and token_id in params.stop_token_ids:
            return "stop", token_id
        if enough and not params.ignore_eos and token_id in self.message.eos_token_ids:
            return "stop", None
        if len(self.sequence.token_ids) >= self.max_length:
            return "length", None
        return None, None

    def add_prompt_entries(self, entries: list[TokenLogprob]) -> None:
        """Keeps log-probabilities of the prompt tokens that come next."""
        self.prompt_entries += entries
        self.sequence.needs_prompt_logits = self.wants_prompt_logprobs

    def report(self, token_id: int | None, logprobs: tuple[TokenLogprob, ...] | None) -> NewTokens:
        """What the engine hears of the step that produced `token_id`; None means scoring only."""
        reason, stop_token = ("length", None) if token_id is None else self.outcome(token_id)
        first, self.announced = not self.announced, True
        has_entries = first and self.message.sampling.prompt_logprobs is not None
        return NewTokens(
            request_id=self.message.request_id,
            admission=self.message.admission,
            position=self.num_produced - 1,  # the batcher has appended one in either case
            token_ids=() if token_id is None else (token_id,),
            logprobs=logprobs,
            prompt_logprobs=tuple(self.prompt_entries) if has_entries else None,
            finish_reason=reason,
            stop_token_id=stop_token,
            num_cached_tokens=self.sequence.num_cached_tokens if first else 0,
            queued_seconds=(self.started_at or 0.0) - self.arrived_at if first else None,
        )

    def _ending_ids(self) -> tuple[int, ...]:
        params = self.message.sampling
        eos = () if params.ignore_eos else self.message.eos_token_ids
        return (*eos, *params.stop_token_ids)

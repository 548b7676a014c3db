"""Log-probabilities in the shapes of the two endpoints."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from janus_moe.engine.text.tokenizer import Tokenizer
from janus_moe.messages import TokenLogprob

# JSON has no infinity; this is what clients of other servers know instead.
LOWEST = -9999.0


class CompletionLogprobs:
    """The `logprobs` of one completion choice, chunk by chunk; keeps the text offset."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0

    def delta(
        self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprob | None]
    ) -> dict[str, list[Any]]:
        """Entries for these tokens; the first of a prompt has no log-probability."""
        return {
            "tokens": [self._tokenizer.token_text(i) for i in token_ids],
            "token_logprobs": [None if p is None else _finite(p.logprob) for p in logprobs],
            "top_logprobs": [None if p is None else self._top(p) for p in logprobs],
            "text_offset": [self._advance(i) for i in token_ids],
        }

    def _top(self, entry: TokenLogprob) -> dict[str, float]:
        """The rivals, and the token itself wherever it ranks."""
        top: dict[str, float] = {}
        for token_id, logprob in (*entry.top, (entry.token_id, entry.logprob)):
            top.setdefault(self._tokenizer.token_text(token_id), _finite(logprob))
        return top

    def _advance(self, token_id: int) -> int:
        before = self._offset
        if token_id not in self._tokenizer.special_ids:
            self._offset += len(self._decoder.decode(self._tokenizer.token_bytes(token_id)))
        return before


def chat_logprobs(
    tokenizer: Tokenizer, logprobs: Sequence[TokenLogprob], num_top: int
) -> list[dict[str, Any]]:
    """The `logprobs.content` of a chat choice."""
    return [
        {
            **_chat_entry(tokenizer, entry.token_id, entry.logprob),
            "top_logprobs": [_chat_entry(tokenizer, *rival) for rival in entry.top[:num_top]],
        }
        for entry in logprobs
    ]


def _chat_entry(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    return {
        "token": tokenizer.token_text(token_id),
        "logprob": _finite(logprob),
        "bytes": list(tokenizer.token_bytes(token_id)),
    }


def _finite(logprob: float) -> float:
    # NaN compares false, so it comes out as LOWEST, too.
    return logprob if logprob > LOWEST else LOWEST

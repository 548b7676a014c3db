"""Incremental detokenisation: token ids in, text out as soon as it is certain, in linear time.

Special tokens are skipped. Characters whose bytes are spread over tokens are held back until they
are complete or known to be broken.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import Protocol

from janus_moe.engine.text.tokenizer import Tokenizer

_CONTEXT_TOKENS = 6
# No character has more than four bytes, so after four tokens a U+FFFD at the end is there to stay.
_MAX_HELD_TOKENS = 4
_BROKEN = "\ufffd"


class _Stream(Protocol):
    def push(self, token_id: int) -> str: ...

    def flush(self) -> str: ...


class Detokenizer:
    """Text of one sequence. `push` after each step, `flush` once at the end.

    context: ids before the generated ones; some tokenizers join text differently at the start.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] = ()) -> None:
        self._skipped = tokenizer.special_ids
        self._stream: _Stream = (
            _ByteStream(tokenizer)
            if tokenizer.pieces.spelling == "byte-level"
            else _WindowStream(tokenizer, context)
        )

    def push(self, token_ids: Iterable[int]) -> str:
        """The text that became certain with these ids; empty while a character is incomplete."""
        return "".join(self._stream.push(i) for i in token_ids if i not in self._skipped)

    def flush(self) -> str:
        """What is still held back: the replacement character for an incomplete one."""
        return self._stream.flush()


class _ByteStream:
    """Byte-level vocabularies: concatenated bytes through an incremental UTF-8 decoder."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._pieces = tokenizer.pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        return self._decoder.decode(self._pieces[token_id])

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class _WindowStream:
    """Any other: decode a short window with and without the new tokens and take the difference."""

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        tail = [i for i in context[-_CONTEXT_TOKENS:] if i not in tokenizer.special_ids]
        self._shown = tail
        self._held: list[int] = []

    def push(self, token_id: int) -> str:
        if not self._tokenizer.pieces[token_id]:
            return ""
        self._held.append(token_id)
        text = self._new_text()
        if text.endswith(_BROKEN) and len(self._held) < _MAX_HELD_TOKENS:
            return ""
        return self._show(text)

    def flush(self) -> str:
        return self._show(self._new_text()) if self._held else ""

    def _new_text(self) -> str:
        before = self._tokenizer.decode(self._shown)
        return self._tokenizer.decode(self._shown + self._held)[len(before) :]

    def _show(self, text: str) -> str:
        self._shown, self._held = self._held, []
        return text

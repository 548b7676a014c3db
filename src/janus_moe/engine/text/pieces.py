"""The bytes behind one token id, for the ways tokenizers spell them.

Byte-level BPE writes every byte as a printable character (GPT-2's table); byte-fallback
vocabularies write `<0xE2>` and mark spaces with U+2581; anything else is asked to decode itself.
"""

from __future__ import annotations

import json
import re
from typing import Any, Literal

Spelling = Literal["byte-level", "byte-fallback", "other"]

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")
_SPACE_MARK = "\u2581"


def byte_of_char() -> dict[str, int]:
    """GPT-2's table: printable Latin-1 stands for itself, the other bytes from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + index): byte for index, byte in enumerate(others)}


class Pieces:
    """Token id -> bytes over a `tokenizers.Tokenizer`; answers are cached."""

    def __init__(self, core: Any) -> None:
        self._core = core
        self._added = core.get_added_tokens_decoder()
        self._byte_of_char = byte_of_char()
        self._cache: dict[int, bytes] = {}
        self.spelling: Spelling = _spelling(core.decoder)
        self.special_ids = frozenset(i for i, token in self._added.items() if token.special)

    def __getitem__(self, token_id: int) -> bytes:
        """Bytes of the token inside a text; empty for ids without a token."""
        known = self._cache.get(token_id)
        if known is None:
            known = self._cache[token_id] = self._bytes(token_id)
        return known

    def _bytes(self, token_id: int) -> bytes:
        piece: str | None = self._core.id_to_token(token_id)
        if piece is None:
            return b""
        if self.spelling == "byte-level":
            return self._byte_level(piece)
        if token_id in self._added:
            return piece.encode()
        if self.spelling == "byte-fallback":
            if match := _BYTE_PIECE.match(piece):
                return bytes([int(match[1], 16)])
            return piece.replace(_SPACE_MARK, " ").encode()
        text: str = self._core.decode([token_id], skip_special_tokens=False)
        return text.encode()

    def _byte_level(self, piece: str) -> bytes:
        """As the byte-level decoder does: a piece with a foreign character is plain text."""
        try:
            return bytes([self._byte_of_char[char] for char in piece])
        except KeyError:
            return piece.encode()


def _spelling(decoder: Any) -> Spelling:
    if decoder is None:
        return "other"
    state = json.loads(decoder.__getstate__())
    kinds = [part["type"] for part in state.get("decoders", [state])]
    if kinds == ["ByteLevel"]:
        return "byte-level"
    return "byte-fallback" if "ByteFallback" in kinds else "other"

"""That an engine takes no new requests for now."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why new requests are refused for now.

    reason: a sentence for people.
    retry_after_s: when it may be different, seconds.
    """

    reason: str
    retry_after_s: float

"""The base of the immutable values that every layer shares."""

from __future__ import annotations

import msgspec


class Spec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An immutable value; decoding one from bytes rejects unknown fields."""

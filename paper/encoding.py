"""What a figure's file holds, byte for byte; needs nothing that plots need."""

from __future__ import annotations

import json
from typing import Any

from paper.catalog import FIGURES
from paper.figure import Data, rounded


def content(number: str, seed: int) -> Data:
    """What a figure's JSON file holds."""
    module = FIGURES[number]
    return {
        "figure": number,
        "title": module.TITLE,
        "basis": module.BASIS,
        "seed": seed,
        "data": rounded(module.data(seed)),
    }


def encoded(value: Data) -> str:
    """What holds nothing nested is on one line; equal values give equal bytes."""
    return _lines(value, "") + "\n"


def _lines(value: Any, margin: str) -> str:
    if not isinstance(value, dict | list):
        return json.dumps(value)
    items = list(value.values()) if isinstance(value, dict) else value
    if not any(isinstance(item, dict | list) for item in items):
        return json.dumps(value, separators=(",", ":"))
    texts = [_lines(item, margin + " ") for item in items]
    if isinstance(value, dict):
        texts = [f"{json.dumps(key)}: {text}" for key, text in zip(value, texts, strict=True)]
    begin, end = "{}" if isinstance(value, dict) else "[]"
    inside = ",\n".join(f"{margin} {text}" for text in texts)
    return f"{begin}\n{inside}\n{margin}{end}"

"""Public traces of requests: Azure CSV, BurstGPT CSV, Mooncake JSONL.

The format is read off the first line unless the caller names it. Errors name file, line and
column, and what was expected there.

Mooncake: https://github.com/kvcache-ai/Mooncake (Apache-2.0)
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, get_args

import msgspec
import numpy as np

from janus_moe.errors import ConfigError
from janus_moe.planner.simulation.csv_traces import AZURE, BURSTGPT, load_csv
from janus_moe.planner.simulation.workload import PrefixBlocks, RequestTrace

TraceFormat = Literal["azure", "burstgpt", "mooncake"]

MOONCAKE_BLOCK_TOKENS = 512

Tokens = Annotated[int, msgspec.Meta(ge=0, lt=1 << 40)]


class MooncakeLine(msgspec.Struct):
    """One request.

    timestamp: milliseconds.
    hash_ids: its prompt's blocks of 512 tokens.
    """

    timestamp: Annotated[float, msgspec.Meta(ge=0, lt=1e15)]
    input_length: Tokens
    output_length: Tokens
    hash_ids: list[Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]] = []


def load_trace(path: Path, trace_format: TraceFormat | None = None) -> RequestTrace:
    """Read a trace; ConfigError if it is not there, not in the format, or malformed."""
    try:
        match trace_format or detect_format(path):
            case "azure":
                return load_csv(path, AZURE)
            case "burstgpt":
                return load_csv(path, BURSTGPT)
            case "mooncake":
                return _load_mooncake(path)
    except OSError as error:
        raise ConfigError(f"cannot read the trace {path}: {error.strerror}") from None


def detect_format(path: Path) -> TraceFormat:
    """By the first line."""
    with path.open("rb") as file:
        first = file.readline(4096).decode("utf-8", errors="replace").lstrip("\ufeff").strip()
    if first.startswith("{"):
        return "mooncake"
    titles = {title.strip() for title in first.split(",")}
    if titles >= set(AZURE.titles):
        return "azure"
    if titles >= set(BURSTGPT.titles):
        return "burstgpt"
    raise ConfigError(
        f"{path}, line 1: not a known trace: {first[:80]!r}; expected the CSV columns "
        f"{', '.join(AZURE.titles)} (azure) or {', '.join(BURSTGPT.titles)} (burstgpt), or JSON "
        f"lines with timestamp, input_length and output_length (mooncake); --format forces one of "
        f"{', '.join(get_args(TraceFormat))}"
    )


def _load_mooncake(path: Path) -> RequestTrace:
    decoder = msgspec.json.Decoder(MooncakeLine)
    lines: list[MooncakeLine] = []
    with path.open("rb") as file:
        for number, text in enumerate(file, 1):
            if text.isspace():
                continue
            try:
                lines.append(decoder.decode(text))
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                raise ConfigError(
                    f"{path}, line {number}: {error}; expected an object with timestamp (ms), "
                    "input_length, output_length and perhaps hash_ids"
                ) from None
    if not lines:
        raise ConfigError(f"{path}: the trace has no lines")
    return RequestTrace.of(
        path.stem,
        np.array([line.timestamp for line in lines]) / 1000.0,
        np.array([line.input_length for line in lines], np.int64),
        np.array([line.output_length for line in lines], np.int64),
        _prefix_blocks(lines),
    )


def _prefix_blocks(lines: list[MooncakeLine]) -> PrefixBlocks | None:
    lengths = [len(line.hash_ids) for line in lines]
    if not any(lengths):
        return None
    return PrefixBlocks(
        hashes=np.array([block for line in lines for block in line.hash_ids], np.int64),
        offsets=np.concatenate(([0], np.cumsum(lengths))),
        block_tokens=MOONCAKE_BLOCK_TOKENS,
    )

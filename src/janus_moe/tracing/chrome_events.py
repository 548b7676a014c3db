"""The events of a Chrome trace, which https://ui.perfetto.dev and chrome://tracing show.

Trace Event Format, JSON object form. A process is a group of rows, a thread is a row; both are
numbers that the caller chooses. Times are microseconds. This module does not know what the events
are about.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from janus_moe.errors import ConfigError

TraceEvent = dict[str, Any]


def process_name(process: int, name: str) -> TraceEvent:
    """The title of a group of rows."""
    return _metadata("process_name", process, 0, {"name": name})


def thread_name(process: int, thread: int, name: str) -> TraceEvent:
    """The title of a row."""
    return _metadata("thread_name", process, thread, {"name": name})


def process_place(process: int, place: int) -> TraceEvent:
    """Where a group of rows stands; groups are shown in ascending order of place."""
    return _metadata("process_sort_index", process, 0, {"sort_index": place})


def complete(
    name: str,
    start_us: float,
    duration_us: float,
    process: int,
    thread: int,
    arguments: Mapping[str, Any],
    category: str = "",
) -> TraceEvent:
    """Something with a beginning and an end; events of one row must not overlap."""
    event: TraceEvent = {"name": name, "ph": "X", "ts": start_us, "dur": duration_us}
    event |= {"pid": process, "tid": thread, "args": dict(arguments)}
    return event | ({"cat": category} if category else {})


def counter(name: str, at_us: float, process: int, values: Mapping[str, float]) -> TraceEvent:
    """Values that hold from `at_us` until the next event of the same name."""
    return {"name": name, "ph": "C", "ts": at_us, "pid": process, "args": dict(values)}


def overlapping(
    name: str,
    start_us: float,
    end_us: float,
    process: int,
    thread: int,
    arguments: Mapping[str, Any],
    category: str,
    number: int,
) -> tuple[TraceEvent, TraceEvent]:
    """The two ends of something that may overlap others of its row; parts of one whole have the
    same category and number."""
    where = {"pid": process, "tid": thread, "cat": category, "id": number}
    begin: TraceEvent = {"name": name, "ph": "b", "ts": start_us, "args": dict(arguments)}
    end: TraceEvent = {"name": name, "ph": "e", "ts": end_us}
    return begin | where, end | where


def document(events: Iterable[TraceEvent]) -> dict[str, Any]:
    """The content of a trace file."""
    return {"traceEvents": list(events), "displayTimeUnit": "ms"}


def write_trace(path: Path, events: Iterable[TraceEvent]) -> None:
    """Writes the file; raises ConfigError when it cannot be written."""
    try:
        path.write_text(json.dumps(document(events)) + "\n")
    except OSError as error:
        raise ConfigError(
            f"cannot write the trace {path}: {error.strerror}; name a file in a folder that exists"
        ) from None


def _metadata(name: str, process: int, thread: int, arguments: dict[str, Any]) -> TraceEvent:
    return {"name": name, "ph": "M", "pid": process, "tid": thread, "args": arguments}

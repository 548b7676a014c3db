"""The spans of all instances of a service as a Chrome trace.

One group of rows per instance. Events of a row never overlap: messages that are under way at once
get rows of their own.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from janus_moe.cluster.hosts.shares import LOCAL
from janus_moe.cluster.tracing import InstanceTrace
from janus_moe.errors import ConfigError
from janus_moe.tracing import Span
from janus_moe.tracing.chrome_events import (
    TraceEvent,
    complete,
    document,
    process_name,
    process_place,
    thread_name,
)

WAITING = frozenset({"wait", "between steps"})
ENDING = frozenset({"sample", "reply"})


def chrome_trace(traces: Sequence[InstanceTrace], steps: int) -> dict[str, Any]:
    """The last `steps` steps in which most attention instances took part, recorded to their end.

    Raises ConfigError when there are fewer.
    """
    chosen = _choose_steps(traces, steps)
    work = {trace.instance: _work_of(trace.spans, chosen) for trace in traces}
    every = [span for spans in work.values() for span in spans if span.name not in WAITING]
    start, end = min(span.start_ns for span in every), max(span.end_ns for span in every)
    messages = _messages(traces, chosen, end)
    events: list[TraceEvent] = []
    for pid, trace in enumerate(traces):
        name = f"{trace.instance}" + (f" on {trace.host}" if trace.host != LOCAL else "")
        events += [process_name(pid, name), process_place(pid, pid), thread_name(pid, 0, "work")]
        clipped = [_clip(span, start, end) for span in work[trace.instance]]
        events += [_event(span, pid, 0, start) for span in clipped if span.end_ns > span.start_ns]
        tid = 0
        for row in ("sent", "received"):
            for lane in _lanes(messages[pid, row]):
                tid += 1
                events.append(thread_name(pid, tid, row))
                events += [_event(span, pid, tid, start) for span in lane]
    return document(events)


def _choose_steps(traces: Sequence[InstanceTrace], steps: int) -> frozenset[int]:
    """An expert's last reply may be missing: recording can end between the reply and its mark."""
    parts: dict[int, int] = defaultdict(int)
    for trace in traces:
        for span in trace.spans:
            parts[span.step] += span.row == "work" and span.name in ENDING
    most = max(parts.values(), default=0)
    full = sorted(step for step, count in parts.items() if count == most > 0)
    if len(full) < steps:
        raise ConfigError(f"{len(full)} whole steps were recorded, {steps} were asked for")
    return frozenset(full[-steps:])


def _work_of(spans: Iterable[Span], steps: frozenset[int]) -> list[Span]:
    return [span for span in spans if span.row == "work" and span.step in steps]


def _messages(
    traces: Sequence[InstanceTrace], steps: frozenset[int], end: int
) -> dict[tuple[int, str], list[Span]]:
    """(instance number, row) -> its messages that were sent in `steps` and arrived by `end`.

    A message lasts from its send to its arrival, on both sides. Both ends tell of it in the same
    order, but only the sender knows when it began, and only the receiver when it was there.
    """
    numbers = {str(trace.instance): number for number, trace in enumerate(traces)}
    windows = {str(trace.instance): _window(trace.spans, steps) for trace in traces}
    sends: dict[tuple[str, str, str], deque[Span]] = defaultdict(deque)
    for trace in traces:
        for span in trace.spans:
            if span.row == "sent":
                sends[str(trace.instance), span.peer, span.name].append(span)
    found: dict[tuple[int, str], list[Span]] = defaultdict(list)
    for number, trace in enumerate(traces):
        me = str(trace.instance)
        for got in trace.spans:
            queue = sends[got.peer, me, got.name] if got.row == "received" else None
            if not queue:
                continue
            sent = queue.popleft()
            first, after = windows[got.peer]
            if not first <= sent.start_ns < after or got.end_ns > end:
                continue
            begun = min(sent.start_ns, got.end_ns - 1)  # clocks of hosts agree to microseconds
            span = msgspec.structs.replace(got, start_ns=begun)
            found[number, "received"].append(span)
            other = msgspec.structs.replace(span, row="sent", peer=me)
            found[numbers[got.peer], "sent"].append(other)
    return found


def _window(spans: Iterable[Span], steps: frozenset[int]) -> tuple[float, float]:
    """When an instance's part in `steps` begins, and in later ones. A message's own step is that of
    the moment when its sending was noticed."""
    work = [span for span in spans if span.row == "work"]
    first = min((span.start_ns for span in work if span.step in steps), default=math.inf)
    after = min((span.start_ns for span in work if span.step > max(steps)), default=math.inf)
    return first, after


def _lanes(spans: Iterable[Span]) -> list[list[Span]]:
    """As few rows as it takes for none to overlap."""
    lanes: list[list[Span]] = []
    for span in sorted(spans, key=lambda span: span.start_ns):
        free = next((lane for lane in lanes if lane[-1].end_ns <= span.start_ns), None)
        if free is None:
            lanes.append([span])
        else:
            free.append(span)
    return lanes


def _clip(span: Span, start: int, end: int) -> Span:
    """A wait may have begun before the first step."""
    return msgspec.structs.replace(
        span, start_ns=max(span.start_ns, start), end_ns=min(span.end_ns, end)
    )


def _event(span: Span, pid: int, tid: int, start: int) -> TraceEvent:
    arguments: dict[str, Any] = {}
    if span.row == "work":
        arguments = {"step": span.step, "tokens": span.tokens}
        if span.layer >= 0:
            arguments["layer"] = span.layer
    else:
        arguments = {"way": span.row, "peer": span.peer, "bytes": span.num_bytes}
    return complete(
        span.name,
        (span.start_ns - start) / 1e3,
        (span.end_ns - span.start_ns) / 1e3,
        pid,
        tid,
        arguments,
        "work" if span.row == "work" else "message",
    )

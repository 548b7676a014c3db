"""What an instance did when: spans of time, recorded only while somebody has asked for them.

Times are nanoseconds of `time.perf_counter_ns`, one clock for all processes of a host on Linux.
On a GPU a span is the time that its launches took, not the work itself. Who asks and what becomes
of the spans is not known here.
"""

from __future__ import annotations

import time

import msgspec

MAX_SPANS = 200_000


class Span(msgspec.Struct, frozen=True, array_like=True):
    """row: "work" for what an instance does itself, in order; "sent" and "received" for messages,
    which may overlap. step, layer: -1 where it belongs to none. peer: of a message."""

    row: str
    name: str
    start_ns: int
    end_ns: int
    step: int = -1
    layer: int = -1
    peer: str = ""
    num_bytes: int = 0
    tokens: int = 0


class SpanLog:
    """Of one instance. One thread marks, another may record messages, start and stop.

    Marks cut the instance's time into pieces without gaps: each names what was done since the one
    before. While nobody records, a mark costs one comparison.
    """

    def __init__(self) -> None:
        self._spans: list[Span] | None = None
        self._since = 0
        self._started = 0
        self.step = -1
        self.tokens = 0

    def start(self) -> None:
        """Records from the next mark on; forgets what was recorded before."""
        self._since, self._started = 0, time.perf_counter_ns()
        self._spans = []

    def stop(self) -> tuple[Span, ...]:
        """What was recorded, at most `MAX_SPANS`."""
        spans, self._spans = self._spans, None
        return tuple(spans or ())

    def mark(self, name: str, layer: int = -1) -> None:
        """Ends a piece of work of the current step."""
        spans = self._spans
        if spans is None:
            return
        now = time.perf_counter_ns()
        since, self._since = self._since, now
        if since and len(spans) < MAX_SPANS:
            spans.append(Span("work", name, since, now, self.step, layer, "", 0, self.tokens))

    def message(
        self, row: str, name: str, peer: str, num_bytes: int, start_ns: int, end_ns: int
    ) -> None:
        """A message that was under way from `start_ns` to `end_ns`; not one that ends now but was
        sent before recording began."""
        spans = self._spans
        if spans is None or (row == "sent" and start_ns < self._started):
            return
        if len(spans) < MAX_SPANS:
            spans.append(Span(row, name, start_ns, end_ns, self.step, -1, peer, num_bytes))

"""What an instance did when: spans of time, recorded only while a trace is asked for.

Times are nanoseconds of `time.perf_counter_ns`, one clock for all processes of a host on Linux.
On a GPU a span is the time that its launches took, not the work itself. What becomes of the spans
is not known here.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

MAX_SPANS = 200_000


class Span(msgspec.Struct, frozen=True, array_like=True):
    """One thing that an instance did.

    row: "work" for what it does itself, in order; "sent" or "received" for messages, which overlap.
    name: what was done, or the kind of message.
    start_ns, end_ns: `time.perf_counter_ns` at both ends.
    step, layer: where it belongs; -1 means nowhere.
    peer: the instance at the other end of a message; empty for work.
    num_bytes: size of a message; 0 for work.
    tokens: of the instance in the step; 0 for messages.
    """

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
    """The spans of one instance. One thread marks, another may record messages, start and stop.

    Marks cut the instance's time into pieces without gaps: each names what was done since the one
    before. While nothing is recorded, a mark costs one comparison.

    step, tokens: of the work that is under way, or was the latest.
    pairs: counts the pairs of tokens that attend to each other in it.
    """

    def __init__(self) -> None:
        self._spans: list[Span] | None = None
        self._since = 0
        self._started = 0
        self.step = -1
        self.tokens = 0
        self.pairs: Callable[[], int] = int

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

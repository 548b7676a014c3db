"""Stop strings over a stream of text, independent of how the text is cut into pieces.

The stop string that is complete first ends the text; of several complete at the same character
the longest counts. The text before it is kept, the stop string itself is not.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Passes text on, except what may still turn out to be the beginning of a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._matchers = [_Matcher(stop) for stop in stops if stop]
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """(text that is certain, the stop string that ended it or None).

        Nothing may be pushed after a match.
        """
        if not self._matchers:
            return text, None
        pending = self._held + text
        for position in range(len(self._held), len(pending)):
            if matched := self._step(pending[position]):
                self._held = ""
                return pending[: position + 1 - len(matched)], matched
        certain = len(pending) - max(matcher.matched for matcher in self._matchers)
        self._held = pending[certain:]
        return pending[:certain], None

    def flush(self) -> str:
        """At the end of the sequence: what was held back and is plain text after all."""
        held, self._held = self._held, ""
        return held

    def _step(self, char: str) -> str | None:
        complete = [matcher.stop for matcher in self._matchers if matcher.step(char)]
        return max(complete, key=len, default=None)


class _Matcher:
    """Knuth-Morris-Pratt: `matched` is the longest prefix of `stop` the text so far ends with."""

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.matched = 0
        self._fallback = _fallback(stop)

    def step(self, char: str) -> bool:
        while self.matched and self.stop[self.matched] != char:
            self.matched = self._fallback[self.matched - 1]
        self.matched += self.stop[self.matched] == char
        return self.matched == len(self.stop)


def _fallback(stop: str) -> list[int]:
    """[i] length of the longest proper prefix of stop[: i + 1] that is also its suffix."""
    table = [0] * len(stop)
    length = 0
    for position in range(1, len(stop)):
        while length and stop[position] != stop[length]:
            length = table[length - 1]
        length += stop[position] == stop[length]
        table[position] = length
    return table

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from janus_moe.engine.text.stopping import StopStrings

LETTERS = st.text("abc", max_size=12)
STOPS = st.lists(st.text("abc", min_size=1, max_size=5), max_size=4)


def cut(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Reference: over the whole text, the match that ends first, then the longest."""
    found = [(text.find(stop) + len(stop), -len(stop), stop) for stop in stops if stop in text]
    if not found:
        return text, None
    end, negative_length, stop = min(found)
    return text[: end + negative_length], stop


@given(st.lists(LETTERS, max_size=8), STOPS)
@example(["aab", "aac"], ["aabaac", "ac"])
@example(["ab", "c"], ["bcd", "c"])
def test_equals_cutting_the_whole_text(pieces: list[str], stops: list[str]) -> None:
    stopping, shown, matched = StopStrings(stops), "", None
    for piece in pieces:
        text, matched = stopping.push(piece)
        shown += text
        if matched is not None:
            break
    else:
        shown += stopping.flush()
    assert (shown, matched) == cut("".join(pieces), stops)


@given(st.lists(LETTERS, max_size=8), STOPS)
def test_never_holds_back_more_than_a_beginning(pieces: list[str], stops: list[str]) -> None:
    stopping, seen, shown = StopStrings(stops), "", ""
    for piece in pieces:
        text, matched = stopping.push(piece)
        seen, shown = seen + piece, shown + text
        if matched is not None:
            return
        held = seen[len(shown) :]
        assert shown + held == seen
        assert held == "" or any(stop.startswith(held) for stop in stops)


def test_no_stops_pass_everything() -> None:
    assert StopStrings([]).push("anything") == ("anything", None)

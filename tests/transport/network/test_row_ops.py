"""Row ops that are fused do what they do one after another, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from janus_moe.transport.exchange_plans.program import Add, Clear, Copy, LocalBuffer, RowOp
from janus_moe.transport.exchange_plans.rows import Index
from janus_moe.transport.network.row_ops import CopyAdd, apply, bind, fuse_copy_add

ROWS = 4
TARGETS = (LocalBuffer("result", ROWS), LocalBuffer("scratch", ROWS))
SOURCES = (LocalBuffer("partial", ROWS), LocalBuffer("input", ROWS), LocalBuffer("scratch", ROWS))


PLACES = (range(ROWS), range(2), range(2, ROWS), range(1, 3))


@st.composite
def row_ops(draw: st.DrawFn) -> RowOp:
    """Few rows and many ops, so that most meet earlier ones."""
    kind = draw(st.sampled_from((Copy, Copy, Add, Add, Add, Clear)))
    target = draw(st.sampled_from(TARGETS))
    if kind is Clear:
        return Clear(target)
    places: Index = draw(st.sampled_from(PLACES))
    start = draw(st.integers(0, ROWS - len(places)))
    origins: Index = range(start, start + len(places))
    source = draw(st.sampled_from([one for one in SOURCES if one != target]))
    if draw(st.integers(0, 9)) == 0:
        places, origins = np.array(places), np.array(origins)
    return (Add if kind is Add else Copy)(target, places, source, origins)


def results(every: Sequence[RowOp | CopyAdd]) -> NDArray[np.float32]:
    """[result, scratch] after the ops."""
    draw = np.random.default_rng(0)
    kinds = ("result", "scratch", "partial", "input")
    local = {kind: draw.normal(size=(ROWS, 2)).astype(np.float32) * 10**7 for kind in kinds}
    for row_op in every:
        bound = bind(
            row_op,
            lambda buffer: buffer.kind if isinstance(buffer, LocalBuffer) else None,
            lambda index: slice(index.start, index.stop) if isinstance(index, range) else index,
        )
        apply(bound, local)
    return np.stack([local["result"], local["scratch"]])


@settings(max_examples=200, deadline=None)
@given(every=st.lists(row_ops(), min_size=2, max_size=12))
def test_joined_moves_give_what_they_give_one_by_one(every: list[RowOp]) -> None:
    assert np.array_equal(results(every), results(fuse_copy_add(every)))


def test_a_copy_and_an_add_to_the_same_rows_become_one_sum() -> None:
    result, partial, other = TARGETS[0], SOURCES[0], SOURCES[1]
    low, high = range(2), range(2, 4)
    every: list[RowOp] = [
        Copy(result, low, partial, low),
        Copy(result, high, partial, high),
        Add(result, low, other, low),
        Add(result, high, other, high),
        Add(result, low, other, high),
    ]
    assert fuse_copy_add(every) == [
        CopyAdd(result, low, partial, low, other, low),
        CopyAdd(result, high, partial, high, other, high),
        every[-1],
    ]

"""A reference interpreter of programs over numpy arrays, and the cases that tests draw."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from janus_moe.transport.exchange_plans import EveryRow, Program, RoutedRows, RowDemand, Topology
from janus_moe.transport.exchange_plans.program import (
    Add,
    Buffer,
    Clear,
    Copy,
    LocalBuffer,
    RowMessage,
    Stage,
)
from janus_moe.transport.exchange_plans.rows import Index

Array = NDArray[np.float32]
WIDTH = 3
Network = dict[tuple[int, int, int], deque[Array]]  # (source, target, lane) -> on their way


@dataclass
class Instance:
    """One instance's memory, and how far it has got."""

    program: Program
    local: dict[str, Array]
    messages: dict[int, Array] = field(default_factory=dict)
    done: int = 0
    posted: bool = False

    def advance(self, network: Network) -> bool:
        """Does what it can; whether that was anything."""
        before = (self.done, self.posted)
        while self.done < len(self.program.stages):
            stage = self.program.stages[self.done]
            if not self.posted:
                self._send(stage, network)
                self.posted = True
            if not all(network.get(_key(message)) for message in stage.receives):
                break
            for message in stage.receives:
                self.messages[id(message)] = network[_key(message)].popleft()
                assert len(self.messages[id(message)]) == message.num_rows
            self._move(stage)
            self.done, self.posted = self.done + 1, False
        return (self.done, self.posted) != before

    def _send(self, stage: Stage, network: Network) -> None:
        for send in stage.sends:
            rows = self.messages[id(send.content)]
            assert len(rows) == send.message.num_rows
            network.setdefault(_key(send.message), deque()).append(rows.copy())

    def _move(self, stage: Stage) -> None:
        for row_op in stage.row_ops:
            target = self._rows(row_op.target)
            match row_op:
                case Clear():
                    target[:] = 0
                case Copy():
                    target[_at(row_op.target_rows)] = self._rows(row_op.source)[
                        _at(row_op.source_rows)
                    ]
                case Add():
                    target[_at(row_op.target_rows)] += self._rows(row_op.source)[
                        _at(row_op.source_rows)
                    ]

    def _rows(self, buffer: Buffer) -> Array:
        if isinstance(buffer, LocalBuffer):
            if buffer.kind == "scratch" and len(self.local.get("scratch", ())) < buffer.num_rows:
                self.local["scratch"] = _garbage(buffer.num_rows)
            return self.local[buffer.kind][: buffer.num_rows]
        return self.messages.setdefault(id(buffer), _garbage(buffer.num_rows))


def _garbage(num_rows: int) -> Array:
    """What a reused buffer holds."""
    return np.full((num_rows, WIDTH), np.nan, np.float32)


def _key(message: RowMessage) -> tuple[int, int, int]:
    return message.source, message.target, message.lane


def _at(index: Index) -> slice | NDArray[np.int64]:
    return slice(index.start, index.stop) if isinstance(index, range) else index


def run(programs: list[Program], local: list[dict[str, Array]]) -> list[dict[str, Array]]:
    """Runs all instances' programs; fails where they wait in a circle or messages are left."""
    instances = [
        Instance(program, dict(mine)) for program, mine in zip(programs, local, strict=True)
    ]
    network: Network = {}
    moving = True
    while moving:
        moving = sum(instance.advance(network) for instance in instances) > 0
    stuck = [i.program.rank for i in instances if i.done < len(i.program.stages)]
    assert not stuck, f"instances {stuck} wait for messages that none sends"
    assert not any(network.values()), "messages that none receives"
    return [instance.local for instance in instances]


# --- cases --------------------------------------------------------------------------------------


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    num_nodes = draw(st.integers(1, 4))
    node = st.integers(0, num_nodes - 1)
    attention = draw(st.lists(node, min_size=1, max_size=6))
    experts = draw(st.lists(node, min_size=1, max_size=8))
    if draw(st.booleans()):  # pools on separate hosts
        experts = [node + num_nodes for node in experts]
    return Topology(tuple(attention), tuple(experts))


@st.composite
def demands(draw: st.DrawFn, topology: Topology, max_tokens: int = 512) -> RowDemand:
    count = st.one_of(st.just(0), st.integers(0, 5), st.integers(0, max_tokens))
    tokens = tuple(draw(count) for _ in topology.attention_nodes)
    if draw(st.booleans()):
        return EveryRow(tokens)
    top_k = draw(st.integers(1, 3))
    seed = draw(st.integers(0, 2**32 - 1))
    generator = np.random.default_rng(seed)
    low = draw(st.sampled_from((-1, 0)))  # with and without tokens that have no replica
    high = draw(st.integers(1, topology.num_expert_instances))  # some instances get nothing
    return RoutedRows.of(
        [generator.integers(low, high, (count, top_k)).astype(np.int64) for count in tokens]
    )

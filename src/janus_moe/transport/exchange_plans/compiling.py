"""Programs of single instances from the messages of all: what to pack, pass on, unpack and add."""

from __future__ import annotations

from collections.abc import Iterator

from janus_moe.transport.exchange_plans.demand import ExchangeBatch
from janus_moe.transport.exchange_plans.groups import Group
from janus_moe.transport.exchange_plans.program import (
    Add,
    Buffer,
    Clear,
    Copy,
    Direction,
    LocalBuffer,
    Program,
    RowMessage,
    RowOp,
    SendMessage,
    Stage,
)
from janus_moe.transport.exchange_plans.rows import RowSet, overlap

Holding = tuple[Buffer, RowSet]


class ProgramBuilder:
    """A program that is being written: row ops, sends and receives by stage number."""

    def __init__(self, rank: int, direction: Direction, messages: tuple[RowMessage, ...]) -> None:
        self.rank = rank
        self.direction = direction
        self.outgoing = [message for message in messages if message.source == rank]
        self.incoming = [message for message in messages if message.target == rank]
        numbers = {0, *(message.stage for message in (*self.outgoing, *self.incoming))}
        self.numbers = sorted(numbers)
        self.sends: dict[int, list[SendMessage]] = {number: [] for number in numbers}
        self.row_ops: dict[int, list[RowOp]] = {number: [] for number in numbers}

    def before(self, number: int) -> list[RowOp]:
        """Row ops that are applied before the sends of stage `number`."""
        return self.row_ops[self.numbers[self.numbers.index(number) - 1]]

    def after(self, number: int) -> list[RowOp]:
        """Row ops on what stage `number` received, once the next stage's sends are on their way."""
        later = self.numbers[self.numbers.index(number) :]
        return self.row_ops[later[1] if len(later) > 1 else number]

    def program(self) -> Program:
        received: dict[int, list[RowMessage]] = {number: [] for number in self.numbers}
        for message in self.incoming:
            received[message.stage].append(message)
        stages = (
            Stage(n, tuple(self.sends[n]), tuple(received[n]), tuple(self.row_ops[n]))
            for n in self.numbers
        )
        used = (stage for stage in stages if stage.sends or stage.receives or stage.row_ops)
        return Program(self.rank, self.direction, tuple(used))


def dispatch_program(batch: ExchangeBatch, messages: tuple[RowMessage, ...], rank: int) -> Program:
    """Rows from `input` of attention instances to `batch` of expert instances."""
    builder = ProgramBuilder(rank, "dispatch", messages)
    own = _own_rows(batch, rank)
    holdings: list[Holding] = []
    if rank < batch.topology.num_attention_instances:
        holdings.append((LocalBuffer("input", len(own)), own))
    for number in builder.numbers:
        for message in builder.outgoing:
            if message.stage == number:
                builder.sends[number].append(_send(message, holdings, builder.before(number)))
        holdings += [(m, m.rows) for m in builder.incoming if m.stage == number]
    if rank >= batch.topology.num_attention_instances:
        target = LocalBuffer("batch", len(own))
        for message in builder.incoming:
            builder.after(message.stage).extend(_copies((target, own), (message, message.rows)))
    return builder.program()


def _send(message: RowMessage, holdings: list[Holding], row_ops: list[RowOp]) -> SendMessage:
    """Passes a message on where an equal one has come in, packs it otherwise."""
    for buffer, rows in holdings:
        if isinstance(buffer, RowMessage) and rows == message.rows:
            return SendMessage(message, buffer)
    for holding in holdings:
        row_ops.extend(_copies((message, message.rows), holding))
    return SendMessage(message, message)


def reply_program(
    batch: ExchangeBatch, groups: tuple[Group, ...], messages: tuple[RowMessage, ...], rank: int
) -> Program:
    """Sums from `partial` of expert instances to `result` of attention instances.

    Sums are always added in one order, so that float32 results do not depend on the plan: first
    ascending instance within a node, then ascending node. With gating on the attention side, an
    instance has sums of some rows only; they are added to zeros, in the same order.
    """
    builder = ProgramBuilder(rank, "reply", messages)
    own = _own_rows(batch, rank)
    is_attention = rank < batch.topology.num_attention_instances
    for number, group in enumerate(groups):
        held = _by_node(batch, builder, number, own)
        for message in builder.outgoing:
            if message.group == number:
                builder.sends[message.stage].append(SendMessage(message, message))
                target: Holding = (message, message.rows)
                builder.before(message.stage).extend(_sums(target, message.rows, held, batch))
        mine = dict(group.members).get(rank) if is_attention else None
        if mine is not None:
            last = max((m.stage for m in builder.incoming if m.group == number), default=0)
            result = (LocalBuffer("result", len(own)), own)
            builder.after(last).extend(_sums(result, mine, held, batch))
    if is_attention and len(own) and not batch.demand.complete:
        builder.row_ops[0].insert(0, Clear(LocalBuffer("result", len(own))))
    return builder.program()


def _by_node(
    batch: ExchangeBatch, builder: ProgramBuilder, group: int, own: RowSet
) -> list[list[Holding]]:
    """What the instance has of a group's sums: a list per node, nodes and instances ascending."""
    sources: list[tuple[int, Holding]] = [
        (message.source, (message, message.rows))
        for message in builder.incoming
        if message.group == group
    ]
    if builder.rank >= batch.topology.num_attention_instances:
        sources.append((builder.rank, (LocalBuffer("partial", len(own)), own)))
    by_node: dict[int, list[Holding]] = {}
    for rank, holding in sorted(sources, key=lambda source: source[0]):
        by_node.setdefault(batch.topology.nodes[rank], []).append(holding)
    return [by_node[node] for node in sorted(by_node)]


def _sums(
    target: Holding, part: RowSet, by_node: list[list[Holding]], batch: ExchangeBatch
) -> Iterator[RowOp]:
    """target = sum over nodes of (sum over the node's holdings), in their order.

    part: the rows of `target` that these holdings are about.
    """
    buffer = target[0]
    fresh = batch.demand.complete  # the first to come is copied, so nothing needs clearing
    if not fresh and isinstance(buffer, RowMessage):
        yield Clear(buffer)
    for number, holdings in enumerate(by_node):
        if number == 0 or len(holdings) == 1:
            yield from _accumulate(target, holdings, copy_first=fresh and number == 0)
            continue
        scratch: Holding = (LocalBuffer("scratch", len(part)), part)
        if not fresh:
            yield Clear(scratch[0])
        yield from _accumulate(scratch, holdings, copy_first=fresh)
        yield from _accumulate(target, [scratch], copy_first=False)


def _accumulate(target: Holding, holdings: list[Holding], *, copy_first: bool) -> Iterator[RowOp]:
    for number, holding in enumerate(holdings):
        if copy_first and number == 0:
            yield from _copies(target, holding)
            continue
        for places, origins in overlap(target[1], holding[1]):
            yield Add(target[0], places, holding[0], origins)


def _copies(target: Holding, source: Holding) -> Iterator[RowOp]:
    for places, origins in overlap(target[1], source[1]):
        yield Copy(target[0], places, source[0], origins)


def _own_rows(batch: ExchangeBatch, rank: int) -> RowSet:
    """Rows of an attention instance, or those that an expert instance gets."""
    experts = rank - batch.topology.num_attention_instances
    if experts < 0:
        return batch.owned[rank]
    return batch.demand.rows(batch.everything, (experts,))

"""Which rows an expert instance needs: all (EGate), or those routed to a replica of it (AGate).

EGate: experts gate, so every expert instance gets every row (paper section 3). AGate: attention
instances gate and know the replica of each (token, k); a row goes where it has a replica.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Protocol

import numpy as np

from janus_moe.errors import ConfigError
from janus_moe.transport.exchange_plans.rows import Ids, RowIndices, RowRange, RowRanges, RowSet
from janus_moe.transport.exchange_plans.topology import Topology


class RowDemand(Protocol):
    """Which expert instance needs which rows.

    tokens: [attention instances] rows of each in the batch; 0 takes no part.
    complete: every expert instance needs every row.
    """

    @property
    def tokens(self) -> tuple[int, ...]: ...

    @property
    def complete(self) -> bool: ...

    def rows(self, spans: RowRanges, experts: Iterable[int]) -> RowSet:
        """The rows of `spans` that any of these expert instances needs."""
        ...


@dataclass(frozen=True)
class EveryRow:
    """EGate: every expert instance needs every row."""

    tokens: tuple[int, ...]

    @property
    def complete(self) -> bool:
        return True

    def rows(self, spans: RowRanges, experts: Iterable[int]) -> RowSet:
        return spans if any(True for _ in experts) else RowRanges(())


@dataclass(frozen=True, eq=False)
class RoutedRows:
    """AGate: an expert instance needs the rows that are routed to a replica of it.

    tokens: [attention instances] rows of each in the batch.
    replicas: [rows, k] expert instance of each replica, -1 for none.
    """

    tokens: tuple[int, ...]
    replicas: Ids
    _unions: dict[tuple[int, ...], RowIndices] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.replicas.ndim != 2 or len(self.replicas) != sum(self.tokens):
            raise ConfigError(
                f"routing of shape {self.replicas.shape} for {sum(self.tokens)} rows; "
                "it must be [rows, k]"
            )

    @classmethod
    def of(cls, replicas: Sequence[Ids]) -> RoutedRows:
        """replicas: [attention instances] each [tokens, k]."""
        return cls(tuple(len(rows) for rows in replicas), np.concatenate(replicas))

    @property
    def complete(self) -> bool:
        return False

    def rows(self, spans: RowRanges, experts: Iterable[int]) -> RowSet:
        wanted = tuple(experts)
        if wanted not in self._unions:
            routed = np.isin(self.replicas, wanted).any(axis=1)
            self._unions[wanted] = RowIndices(np.flatnonzero(routed))
        return self._unions[wanted].within(spans)


@dataclass(frozen=True)
class ExchangeBatch:
    """Who has which rows of a batch. Instances without rows are idle and take no part."""

    topology: Topology
    demand: RowDemand

    def __post_init__(self) -> None:
        tokens = self.demand.tokens
        if len(tokens) != self.topology.num_attention_instances or min(tokens) < 0:
            raise ConfigError(
                f"tokens {tokens} for {self.topology.num_attention_instances} attention instances; "
                "one count of at least 0 each"
            )

    @cached_property
    def owned(self) -> tuple[RowRanges, ...]:
        """[attention instances] rows of each."""
        ends = tuple(accumulate(self.demand.tokens))
        return tuple(
            RowRanges.of([(end - count, end)])
            for end, count in zip(ends, self.demand.tokens, strict=True)
        )

    @cached_property
    def everything(self) -> RowRanges:
        return self.owned_by(range(self.topology.num_attention_instances))

    def owned_by(self, instances: Iterable[int]) -> RowRanges:
        """Rows of these attention instances, given in ascending order."""
        spans: list[RowRange] = [span for index in instances for span in self.owned[index].spans]
        return RowRanges.of(spans)

    def active_on(self, node: int) -> tuple[int, ...]:
        """Attention instances of a node that take part."""
        instances = self.topology.attention_on(node)
        return tuple(index for index in instances if self.demand.tokens[index])

"""On which node each instance lives. Nodes are numbers; this module knows no hosts or addresses."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from janus_moe.errors import ConfigError
from janus_moe.spec import PoolShape


@dataclass(frozen=True)
class Topology:
    """The nodes of all instances, by global rank: attention instances first, then experts.

    Nodes are any numbers in any order; a node may host instances of both pools.

    attention_nodes: [attention instances] node of each.
    expert_nodes: [expert instances] node of each.
    """

    attention_nodes: tuple[int, ...]
    expert_nodes: tuple[int, ...]

    def __post_init__(self) -> None:
        for pool, nodes in (("attention", self.attention_nodes), ("expert", self.expert_nodes)):
            if not nodes:
                raise ConfigError(f"a topology needs at least one {pool} instance, got none")
            if min(nodes) < 0:
                raise ConfigError(f"nodes are numbered from 0; {pool} instances are on {nodes}")

    @classmethod
    def one_node(cls, shape: PoolShape) -> Topology:
        return cls((0,) * shape.attention, (0,) * shape.expert)

    @property
    def num_attention_instances(self) -> int:
        return len(self.attention_nodes)

    @property
    def num_expert_instances(self) -> int:
        return len(self.expert_nodes)

    @property
    def num_ranks(self) -> int:
        return self.num_attention_instances + self.num_expert_instances

    @cached_property
    def nodes(self) -> tuple[int, ...]:
        """[ranks] node of each."""
        return (*self.attention_nodes, *self.expert_nodes)

    @cached_property
    def source_nodes(self) -> tuple[int, ...]:
        """Nodes with attention instances, ascending."""
        return tuple(sorted(set(self.attention_nodes)))

    @cached_property
    def experts_by_node(self) -> dict[int, tuple[int, ...]]:
        """Expert node -> its expert instances, both ascending."""
        return {
            node: tuple(_where(self.expert_nodes, node)) for node in sorted(set(self.expert_nodes))
        }

    def attention_on(self, node: int) -> tuple[int, ...]:
        return tuple(_where(self.attention_nodes, node))

    def expert_rank(self, expert: int) -> int:
        return self.num_attention_instances + expert

    def host_peers(self, rank: int) -> tuple[int, ...]:
        """Ranks of the other instances on the node of `rank`."""
        same = _where(self.nodes, self.nodes[rank])
        return tuple(other for other in same if other != rank)


def _where(nodes: tuple[int, ...], node: int) -> Iterable[int]:
    return (index for index, home in enumerate(nodes) if home == node)

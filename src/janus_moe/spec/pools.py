"""Who is in the pools: their shape, the identity of instances, and membership.

This module knows nothing of models, processes or messages.
"""

from __future__ import annotations

import re
from typing import Literal

from janus_moe.errors import ConfigError
from janus_moe.spec.base import Spec

Pool = Literal["attention", "expert"]


class PoolShape(Spec, frozen=True):
    """`attention` x `expert` instances; any two positive numbers."""

    attention: int
    expert: int

    def __post_init__(self) -> None:
        for pool, count in (("attention", self.attention), ("expert", self.expert)):
            if count < 1:
                raise ConfigError(f"--{pool}-instances must be at least 1, got {count}")

    def __str__(self) -> str:
        return f"{self.attention}A{self.expert}E"


class InstanceId(Spec, frozen=True):
    """Permanent name of one member of a pool, e.g. `expert 2`.

    pool: the pool it belongs to.
    number: its number in the pool, which no other instance ever gets; it says nothing of its rank.
    """

    pool: Pool
    number: int

    def __str__(self) -> str:
        return f"{self.pool} {self.number}"

    @classmethod
    def named_in(cls, text: str) -> tuple[InstanceId, ...]:
        """The instances that a text names as `str` of them does, such as errors of exchanges."""
        found = re.findall(r"\b(attention|expert) (\d+)\b", text)
        return tuple(cls(pool=pool, number=int(number)) for pool, number in found)


class Membership(Spec, frozen=True):
    """Which instances are in the pools in one generation; never changed, only followed by another.

    The id of an instance is permanent and never used again. Its rank is its position here, from 0
    in each pool, and means something only together with a membership.

    generation: number of this membership; later ones have larger numbers.
    attention: ids of the attention instances, ascending by rank.
    expert: ids of the expert instances, ascending by rank.
    attention_hosts: [attention instances] number of the host of each.
    expert_hosts: [expert instances] number of the host of each.
    placement_epoch: epoch of the placement that the first steps of this generation use.
    """

    generation: int
    attention: tuple[InstanceId, ...]
    expert: tuple[InstanceId, ...]
    attention_hosts: tuple[int, ...]
    expert_hosts: tuple[int, ...]
    placement_epoch: int = 0

    def __post_init__(self) -> None:
        for pool, members, hosts in (
            ("attention", self.attention, self.attention_hosts),
            ("expert", self.expert, self.expert_hosts),
        ):
            if len(members) != len(hosts):
                raise ConfigError(f"{len(members)} {pool} instances on {len(hosts)} hosts")
            if len(set(members)) != len(members) or any(m.pool != pool for m in members):
                raise ConfigError(f"not a pool of {pool} instances: {', '.join(map(str, members))}")
        _ = self.shape

    @classmethod
    def first(cls, shape: PoolShape) -> Membership:
        """Generation 0 of a service on one host, with ids from 0 in each pool."""
        return cls.on_hosts((0,) * shape.attention, (0,) * shape.expert)

    @classmethod
    def on_hosts(
        cls, attention_hosts: tuple[int, ...], expert_hosts: tuple[int, ...]
    ) -> Membership:
        """Generation 0 of a service on these hosts, with ids from 0 in each pool."""
        attention, expert = range(len(attention_hosts)), range(len(expert_hosts))
        return cls(
            generation=0,
            attention=tuple(InstanceId(pool="attention", number=i) for i in attention),
            expert=tuple(InstanceId(pool="expert", number=i) for i in expert),
            attention_hosts=attention_hosts,
            expert_hosts=expert_hosts,
        )

    @property
    def shape(self) -> PoolShape:
        return PoolShape(attention=len(self.attention), expert=len(self.expert))

    @property
    def instances(self) -> tuple[InstanceId, ...]:
        """All members, attention instances first."""
        return (*self.attention, *self.expert)

    def pool(self, pool: Pool) -> tuple[InstanceId, ...]:
        """The members of one pool by rank."""
        return self.attention if pool == "attention" else self.expert

    def rank(self, instance: InstanceId) -> int:
        """Position of a member in its pool; raises ValueError when it is not a member."""
        members = self.pool(instance.pool)
        if instance not in members:
            raise ValueError(f"{instance} is no member of generation {self.generation}")
        return members.index(instance)

    def host_of(self, instance: InstanceId) -> int:
        """Number of the host that runs a member; raises ValueError when it is not a member."""
        hosts = self.attention_hosts if instance.pool == "attention" else self.expert_hosts
        return hosts[self.rank(instance)]

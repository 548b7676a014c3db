"""Which host runs which instances: pure functions of the settings.

A host is a name here; addresses, processes and memory are the business of others.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from janus_moe.errors import ConfigError
from janus_moe.spec import InstanceId, Membership, PoolShape

LOCAL = "local"
"""The host of the engine itself."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_COUNTS = re.compile(r"(?:(\d+)A)?(?:(\d+)E)?")


@dataclass(frozen=True, slots=True)
class HostRequest:
    """A host as the settings name it; `attention` and `expert` are None for an even split."""

    name: str
    attention: int | None = None
    expert: int | None = None


@dataclass(frozen=True, slots=True)
class HostShare:
    """The instances that one host runs.

    attention: numbers of its attention instances.
    expert: numbers of its expert instances.
    """

    name: str
    attention: tuple[int, ...]
    expert: tuple[int, ...]

    @property
    def is_local(self) -> bool:
        return self.name == LOCAL

    @property
    def instances(self) -> tuple[InstanceId, ...]:
        return (
            *(InstanceId(pool="attention", number=i) for i in self.attention),
            *(InstanceId(pool="expert", number=i) for i in self.expert),
        )

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(map(str, self.instances))})"


def whole(shape: PoolShape) -> HostShare:
    """The only host of a run on one host."""
    return HostShare(LOCAL, tuple(range(shape.attention)), tuple(range(shape.expert)))


def parse_hosts(hosts: str) -> list[HostRequest]:
    """`a,b` or `a=1A,b=2E`."""
    requests = [_request(part.strip()) for part in hosts.split(",")]
    names = [request.name for request in requests]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"--hosts names {', '.join(doubled)} twice")
    counted = [request for request in requests if request.attention is not None]
    if counted and len(counted) != len(requests):
        open_names = [request.name for request in requests if request.attention is None]
        raise ConfigError(
            f"--hosts gives instances to {counted[0].name} but none to {', '.join(open_names)}; "
            "give them to every host, such as a=1A,b=2E, or to none for an even split"
        )
    return requests


def shape_of(requests: Sequence[HostRequest]) -> PoolShape | None:
    """The pools that the hosts' counts add up to; None when they are to be split evenly."""
    if requests[0].attention is None:
        return None
    attention = sum(request.attention or 0 for request in requests)
    expert = sum(request.expert or 0 for request in requests)
    for pool, count in (("attention", attention), ("expert", expert)):
        if not count:
            letter = pool[0].upper()
            raise ConfigError(f"--hosts gives no host an {pool} instance; write e.g. a=1{letter}")
    return PoolShape(attention=attention, expert=expert)


def assign(shape: PoolShape, requests: Sequence[HostRequest]) -> tuple[HostShare, ...]:
    """Gives every instance a host, in ascending order of both.

    Without counts, two or more hosts are divided between the pools so that the fullest host has as
    few instances as possible.
    """
    if requests[0].attention is None:
        counts = _even_counts(shape, len(requests))
    else:
        wanted = shape_of(requests)
        if wanted != shape:
            raise ConfigError(
                f"--hosts adds up to {wanted}, but --attention-instances and --expert-instances "
                f"ask for {shape}; leave them out or make them agree"
            )
        counts = [(request.attention or 0, request.expert or 0) for request in requests]
    shares, next_attention, next_expert = [], 0, 0
    for request, (attention, expert) in zip(requests, counts, strict=True):
        shares.append(
            HostShare(
                request.name,
                tuple(range(next_attention, next_attention + attention)),
                tuple(range(next_expert, next_expert + expert)),
            )
        )
        next_attention, next_expert = next_attention + attention, next_expert + expert
    return tuple(shares)


def first_membership(shares: Sequence[HostShare], placement_epoch: int) -> Membership:
    """The pools that a run starts with; ranks ascend with the numbers of the instances."""
    host = {instance: number for number, s in enumerate(shares) for instance in s.instances}
    members = sorted(host, key=lambda instance: instance.number)
    attention = tuple(instance for instance in members if instance.pool == "attention")
    expert = tuple(instance for instance in members if instance.pool == "expert")
    return Membership(
        generation=0,
        attention=attention,
        expert=expert,
        attention_hosts=tuple(host[instance] for instance in attention),
        expert_hosts=tuple(host[instance] for instance in expert),
        placement_epoch=placement_epoch,
    )


def _even_counts(shape: PoolShape, num_hosts: int) -> list[tuple[int, int]]:
    if num_hosts == 1:
        return [(shape.attention, shape.expert)]
    if num_hosts > shape.attention + shape.expert:
        raise ConfigError(
            f"{num_hosts} hosts are more than the instances of {shape}; name fewer --hosts or "
            "raise --attention-instances or --expert-instances"
        )

    def fullest(attention_hosts: int) -> int:
        expert_hosts = num_hosts - attention_hosts
        return max(-(-shape.attention // attention_hosts), -(-shape.expert // expert_hosts))

    possible = range(max(1, num_hosts - shape.expert), min(num_hosts - 1, shape.attention) + 1)
    attention_hosts = min(possible, key=fullest)
    return [
        *((count, 0) for count in _split(shape.attention, attention_hosts)),
        *((0, count) for count in _split(shape.expert, num_hosts - attention_hosts)),
    ]


def _split(total: int, parts: int) -> list[int]:
    """As evenly as possible, the larger parts first."""
    return [total // parts + (part < total % parts) for part in range(parts)]


def _request(part: str) -> HostRequest:
    name, separator, counts = part.partition("=")
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"--hosts: {name!r} is no name for a host; use letters, digits, dots and dashes"
        )
    if not separator:
        return HostRequest(name)
    match = _COUNTS.fullmatch(counts)
    attention, expert = (int(group or 0) for group in match.groups()) if match else (0, 0)
    if not attention and not expert:
        raise ConfigError(
            f"--hosts: {name}={counts} says no instances; write e.g. {name}=1A (attention), "
            f"{name}=2E (expert) or {name}=1A2E"
        )
    return HostRequest(name, attention, expert)

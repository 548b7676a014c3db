"""All instances that have a process, and how far each is in its life.

```
starting -> ready -> stopping -> (gone)
    |         |         |
    +---------+---------+--> fencing -> (gone)
```

The module does not know generations. Ids are given out here and never used again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from janus_moe.spec import InstanceId, Membership, Pool

Life = Literal["starting", "ready", "stopping", "fencing"]


@dataclass
class RosterEntry:
    """One instance that has a process.

    host: number of its host.
    may_speak: whether it is in an exchange that was committed, and has not left it in good order.
    has_left: whether it was in one and will serve no more.
    """

    life: Life
    host: int = 0
    may_speak: bool = False
    has_left: bool = False


class Roster:
    """The instances by id; those that are gone are absent."""

    def __init__(self, first: Membership) -> None:
        self._entries = {
            instance: RosterEntry("ready", first.host_of(instance), may_speak=True)
            for instance in first.instances
        }
        self._next = {
            pool: 1 + max(i.number for i in first.pool(pool)) for pool in ("attention", "expert")
        }

    def __getitem__(self, instance: InstanceId) -> RosterEntry:
        return self._entries[instance]

    def life(self, instance: InstanceId) -> Life | None:
        """How far it is; None means it is gone or never was."""
        entry = self._entries.get(instance)
        return entry.life if entry else None

    def add(self, pool: Pool) -> InstanceId:
        """A new instance, which is starting."""
        instance = InstanceId(pool=pool, number=self._next[pool])
        self._next[pool] += 1
        self._entries[instance] = RosterEntry("starting")
        return instance

    def remove(self, instance: InstanceId) -> None:
        del self._entries[instance]

    def having(self, *lives: Life, pool: Pool | None = None) -> list[InstanceId]:
        """Instances in one of these parts of their life, oldest first in each pool."""
        return [
            instance
            for instance, entry in self._entries.items()
            if entry.life in lives and pool in (None, instance.pool)
        ]

    def lives(self) -> list[tuple[InstanceId, Life]]:
        """All instances, and how far each is."""
        return [(instance, entry.life) for instance, entry in self._entries.items()]

    def ready_among(self, instances: Iterable[InstanceId]) -> tuple[InstanceId, ...]:
        """Those of them that are ready, in the same order."""
        return tuple(i for i in instances if self.life(i) == "ready")

    def waits_for_fence(self) -> list[InstanceId]:
        """Instances that may still speak in an exchange, and whose end is not confirmed."""
        return [i for i, e in self._entries.items() if e.life == "fencing" and e.may_speak]

    def speaking_outside(self, members: Sequence[InstanceId]) -> list[InstanceId]:
        """Ready instances that may still speak in an exchange and are none of these."""
        return [
            instance
            for instance, entry in self._entries.items()
            if entry.life == "ready" and entry.may_speak and instance not in members
        ]

    def host_of(self, instance: InstanceId) -> int:
        """Number of the host; 0 while it is not known."""
        entry = self._entries.get(instance)
        return entry.host if entry else 0

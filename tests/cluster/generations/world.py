"""Workers and requests as the generation machine meets them, in virtual time.

A simulated world of processes that obey the protocol of generations: they open exchanges together,
commit between two steps or abandon one, and say so over connections. Messages of one connection
keep their order, those of different connections do not, and those on their way are lost when a
process dies. Attention instances take lockstep steps for requests, so that a world that stands
still shows as requests that never end. Decisions come from the machine alone.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from janus_moe.spec import InstanceId


class Clock:
    """What happens at which time; equal times keep the order in which they were asked for."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0

    def after(self, seconds: float, act: Callable[..., None], *arguments: Any) -> int:
        """Its number, by which it can be told that it is stale."""
        self._count += 1
        heapq.heappush(self._queue, (self.now_s + seconds, self._count, act, arguments))
        return self._count

    def run(self, limit: int) -> None:
        """Until nothing is left to happen."""
        for _ in range(limit):
            if not self._queue:
                return
            self.now_s, _, act, arguments = heapq.heappop(self._queue)
            act(*arguments)
        raise AssertionError(f"no end after {limit} events")


@dataclass(slots=True)
class Exchange:
    """What the members of one generation share.

    asked: members that were told to open it.
    opened: members that have opened it.
    absent: attention instances that have left it in good order.
    """

    number: int
    attention: tuple[InstanceId, ...]
    expert: tuple[InstanceId, ...]
    members: tuple[InstanceId, ...]
    asked: set[InstanceId] = field(default_factory=set)
    opened: set[InstanceId] = field(default_factory=set)
    absent: set[InstanceId] = field(default_factory=set)


@dataclass(slots=True)
class Request:
    """The engine's copy.

    owner: the attention instance that has it; None while there is none.
    admission: number of its latest admission.
    done: tokens that the engine has.
    wanted: tokens that it asks for.
    outcome: "answered" or "refused"; "" until it ends.
    """

    number: int
    wanted: int
    owner: InstanceId | None = None
    admission: int = 0
    done: int = 0
    outcome: str = ""


class Worker:
    """One process. `hears` and `says` are its connection to the engine."""

    def __init__(self, world: Workers, instance: InstanceId, serves: Exchange | None) -> None:
        self.world = world
        self.instance = instance
        self.alive = True
        self.hangs = False
        self.is_spoiled = False  # refuses every generation
        self.is_cut = False  # a message was lost, and all after it are
        self.serves = serves
        self.opened: dict[int, Exchange] = {}
        self.pending: Exchange | None = None  # told to commit, with a step or others in the way
        self.leaves = False  # the pending one is without it
        self.in_step = 0  # number of the step under way; 0 for none
        self._steps = 0
        self.blocked = False
        self.requests: dict[int, tuple[int, int, int]] = {}  # admission, done, wanted
        self._heard_s = self._said_s = 0.0

    # --- the connection -------------------------------------------------------------------------

    def hears(self, act: Callable[..., None], *arguments: Any) -> None:
        """A message of the engine, after those before it."""
        clock = self.world.clock
        self._heard_s = max(self._heard_s, clock.now_s) + self.world.delay_s()
        clock.after(self._heard_s - clock.now_s, self._hear, act, arguments)

    def _hear(self, act: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        if self.alive and not self.hangs:
            act(*arguments)

    def says(self, act: Callable[..., None], *arguments: Any) -> None:
        """A message to the engine, after those before it; lost if the process dies meanwhile."""
        clock = self.world.clock
        self._said_s = max(self._said_s, clock.now_s) + self.world.delay_s()
        clock.after(self._said_s - clock.now_s, self._say, act, arguments)

    def _say(self, act: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        self.is_cut = self.is_cut or not (self.alive or self.world.survives_death())
        if not self.is_cut:
            act(*arguments)

    # --- generations ----------------------------------------------------------------------------

    def open(self, exchange: Exchange) -> None:
        """Opening takes all members; then each is ready at a time of its own."""
        world = self.world
        broken = [i for i in exchange.members if frozenset((i, self.instance)) in world.broken]
        for other in broken:
            world.report_link(self.instance, other, exchange.number)
        if broken:
            return
        if self.is_spoiled or world.refuses_once():
            self.says(world.on_refused, self.instance, exchange.number)
            return
        self.opened[exchange.number] = exchange
        exchange.asked.add(self.instance)
        if len(exchange.asked) < len(exchange.members):
            return
        for instance in exchange.members:
            worker = world.workers[instance]
            world.clock.after(world.delay_s() * 3, worker.have_opened, exchange)

    def have_opened(self, exchange: Exchange) -> None:
        if self.alive and not self.hangs and exchange.number in self.opened:
            exchange.opened.add(self.instance)
            self.says(self.world.on_opened, self.instance, exchange.number)

    def drop(self, number: int) -> None:
        self.opened.pop(number, None)

    def commit(self, exchange: Exchange, abandon: bool) -> None:
        self.leaves = exchange.number not in self.opened
        assert self.leaves or len(exchange.opened) == len(exchange.asked)
        if not self.leaves and self.world.refuses_once():
            self.says(self.world.on_refused, self.instance, exchange.number)
            return
        self.pending = exchange
        if abandon:
            self.in_step, self.blocked = 0, False
            self._end_connections()
            self._switch()
        else:
            self.switch_if_free()

    def _end_connections(self) -> None:
        """Peers that still wait in the old exchange may tell that they lost this instance."""
        if self.serves and self.world.dice.random() < 0.3:
            for other in self.serves.members:
                worker = self.world.workers[other]
                if worker is not self and worker.alive and worker.serves is self.serves:
                    self.world.report_link(other, self.instance, self.serves.number)

    def switch_if_free(self) -> None:
        """Commits if nothing is in the way: a step here, or others that have not left."""
        if self.pending is None or not self.alive or self.hangs:
            return
        if self.instance.pool == "attention":
            if self.in_step:
                return
        elif self.serves and not self.serves.absent.issuperset(self.serves.attention):
            return
        self._switch()

    def _switch(self) -> None:
        old, new = self.serves, self.pending
        assert new is not None
        self.pending = None
        self.serves = None if self.leaves else new
        if old and self.instance.pool == "attention":
            old.absent.add(self.instance)
        self.says(self.world.on_committed, self.instance, new.number)
        for exchange in (old, new):
            if exchange:
                self.world.poke(exchange)
        self.begin_step()

    # --- steps ----------------------------------------------------------------------------------

    def add(self, number: int, admission: int, done: int, wanted: int) -> None:
        self.requests[number] = (admission, done, wanted)
        self.begin_step()

    def begin_step(self) -> None:
        if self.requests and self.serves and not self.in_step and not self.pending:
            world = self.world
            self.blocked = False
            self._steps += 1
            self.in_step = self._steps
            world.clock.after(world.delay_s() * 4, self.end_step, self.in_step, self.serves)

    def end_step(self, step: int, exchange: Exchange) -> None:
        """The step ends if all that take part in it do; else it waits. Abandoned ones never do."""
        if not self.alive or self.hangs or self.in_step != step:
            return
        self.blocked = not self.world.can_step(self.instance, exchange)
        if self.blocked:
            return
        self.in_step = 0
        produced = []
        for number, (admission, done, wanted) in [*self.requests.items()]:
            produced.append((number, admission, done))
            self.requests[number] = (admission, done + 1, wanted)
            if done + 1 == wanted:
                del self.requests[number]
        self.says(self.world.on_tokens, self.instance, produced)
        self.switch_if_free()
        self.begin_step()


class Workers:
    """All processes, links between them, and what they tell the engine (the methods `on_...`)."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.clock = Clock()
        self.workers: dict[InstanceId, Worker] = {}
        self.exchanges: dict[int, Exchange] = {}
        self.broken: set[frozenset[InstanceId]] = set()
        self.refusals = 0  # how many are still to come

    def delay_s(self) -> float:
        """Of a message; now and then it is late."""
        number = self.dice.random()
        return number * 0.01 if number < 0.9 else number * 0.5

    def survives_death(self) -> bool:
        """Whether a message that was on its way arrives although its process has died."""
        return self.dice.random() < 0.5

    def refuses_once(self) -> bool:
        """Whether an instance cannot open an exchange for once."""
        is_so = self.refusals > 0 and self.dice.random() < 0.3
        self.refusals -= is_so
        return is_so

    def can_step(self, instance: InstanceId, exchange: Exchange) -> bool:
        """Whether a step of an instance gets all announcements and replies."""
        for other in exchange.attention:
            if other not in exchange.absent and not self._takes_part(other, exchange):
                return False
        for other in exchange.expert:
            if frozenset((instance, other)) in self.broken:
                self.report_link(instance, other, exchange.number)
                return False
            if not self._takes_part(other, exchange):
                return False
        return True

    def _takes_part(self, instance: InstanceId, exchange: Exchange) -> bool:
        worker = self.workers[instance]
        return worker.alive and not worker.hangs and worker.serves is exchange

    def poke(self, exchange: Exchange) -> None:
        """Something has changed in an exchange: whoever waits in it looks again."""
        for instance in exchange.expert:
            self.workers[instance].switch_if_free()
        for instance in exchange.attention:
            worker = self.workers[instance]
            if worker.blocked and worker.serves is exchange:
                worker.end_step(worker.in_step, exchange)

    def report_link(self, instance: InstanceId, other: InstanceId, number: int) -> None:
        raise NotImplementedError

    def on_ready(self, instance: InstanceId) -> None:
        raise NotImplementedError

    def on_opened(self, instance: InstanceId, number: int) -> None:
        raise NotImplementedError

    def on_refused(self, instance: InstanceId, number: int) -> None:
        raise NotImplementedError

    def on_committed(self, instance: InstanceId, number: int) -> None:
        raise NotImplementedError

    def on_tokens(self, instance: InstanceId, produced: list[tuple[int, int, int]]) -> None:
        raise NotImplementedError

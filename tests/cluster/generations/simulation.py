"""One service in virtual time: the machine decides, the world obeys, and everything is audited.

`simulate(seed)` plays one schedule: pools of some sizes, requests, operators, rebalances, and
faults at any moment. It raises `AssertionError` when a decision breaks a rule that the sequence of
actions shows, or when the schedule does not end well: in the generation before or after a change,
with every request answered or refused with a reason, and no process left over.

`python -m tests.cluster.generations.simulation --schedules 1000000` plays more of them.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import traceback
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from tests.cluster.generations.audit import Audit
from tests.cluster.generations.world import Exchange, Request, Worker, Workers

from janus_moe.cluster.generations import (
    Generation,
    GenerationMachine,
    GenerationSettings,
)
from janus_moe.cluster.generations import actions as do
from janus_moe.cluster.generations import events as on
from janus_moe.cluster.generations.changes import Recovery
from janus_moe.cluster.generations.invariants import violations
from janus_moe.errors import ConflictError, RequestError
from janus_moe.policy.placement import NoPlacement, Placement
from janus_moe.spec import InstanceId, Membership, PoolShape

NUM_EXPERTS = 4
LIMIT = 20_000
"""Events after which a schedule is taken not to end."""
LOG_LINES = 200
"""Last lines of a failing schedule that are printed."""


@lru_cache(maxsize=4096)
def placement(epoch: int, instances: int) -> Placement:
    """Experts dealt out in turn, as the least that serves."""
    slots = tuple(tuple(range(i % NUM_EXPERTS, NUM_EXPERTS, instances)) for i in range(instances))
    return Placement(epoch=epoch, num_experts=NUM_EXPERTS, slots=(slots,))


class Dealer:
    """A placer with so many slots an instance, which finds no place for some planned changes."""

    def __init__(self, capacity: int, failures: int) -> None:
        self._capacity = capacity
        self._failures = failures

    def place(
        self, membership: Membership, serving: Generation, purpose: str
    ) -> Placement | NoPlacement:
        instances = len(membership.expert)
        if purpose == "resize" and self._failures:
            self._failures -= 1
            return NoPlacement("the checkpoint is gone")
        if instances * self._capacity < NUM_EXPERTS:
            return NoPlacement(f"{instances} expert instances have too few slots")
        return placement(membership.placement_epoch, instances)


class Simulation(Workers):
    """The engine's side: carries actions out, routes requests, and makes trouble."""

    def __init__(self, seed: int) -> None:
        super().__init__(random.Random(seed))
        dice = self.dice
        shape = PoolShape(attention=dice.randint(1, 3), expert=dice.randint(1, 3))
        first = Membership.first(shape)
        tight = -(-NUM_EXPERTS // shape.expert)
        self.settings = GenerationSettings(
            max_attention=4,
            max_expert=4,
            standby_attention=dice.random() < 0.2,
            standby_experts=dice.random() < 0.2,
            max_restarts=dice.choice((0, 1, 10, 10)),
            start_timeout_s=20.0,
            rebalancing_timeout_s=5.0,
            open_timeout_s=8.0,
            commit_timeout_s=8.0,
        )
        self.stand_by = self.settings.standby_attention + self.settings.standby_experts
        self.machine = GenerationMachine(
            Generation(first, placement(0, shape.expert)),
            self.settings,
            Dealer(dice.choice((tight, NUM_EXPERTS)), dice.choice((0, 0, 0, 0, 1, 2))),
            0.0,
        )
        self.audit = Audit(first)
        exchange = Exchange(0, first.attention, first.expert, first.instances)
        self.exchanges[0] = exchange
        self.workers = {i: Worker(self, i, exchange) for i in first.instances}
        self.requests: list[Request] = []
        self.routable = list(first.attention)
        self.refuses = ""
        self.rebalances = False
        self.rebalancing_allowed = True
        self.stop_asked = False
        self.last_epoch = 0
        self.timers: dict[str, int] = {}
        self.num_timers = 0
        self.reported_links: set[tuple[InstanceId, InstanceId, int]] = set()
        self.fencing: set[InstanceId] = set()
        self.is_plain = dice.random() < 0.4  # nothing hangs, refuses or loses a link; it only ends
        self.num_actions = 0
        self.is_forgiven = False  # an operator has allowed restarts beyond the budget
        self.faults_at_action: set[int] = set()
        self.log: list[str] | None = None

    # --- one schedule ---------------------------------------------------------------------------

    def play(self, trouble: int) -> None:
        """One schedule; with more trouble it is longer, and more happens in it."""
        dice = self.dice
        self.perform(self.machine.begin())
        for _ in range(dice.randint(1, 3) * trouble):
            self.clock.after(dice.random() * trouble, self.arrive)
        for _ in range(dice.choice((0, 1, 1, 1, 2, 3)) * trouble):
            self.clock.after(dice.random() * 3 * trouble, self.operate)
        for _ in range(dice.choice((0, 0, 1)) * trouble):
            self.clock.after(dice.random() * 2 * trouble, self.rebalance)
        self.refusals = 0 if self.is_plain else dice.choice((0, 0, 0, 1, 5)) * trouble
        for _ in range(dice.choice((0, 1, 1, 2, 3)) * trouble):
            if dice.random() < 0.5:
                self.clock.after(dice.random() * 4 * trouble, self.harm)
            else:
                self.faults_at_action.add(dice.randint(1, 40 * trouble))
        self.clock.run(LIMIT * trouble)
        self.check_end()

    def check_end(self) -> None:
        state, status = self.machine.state, self.machine.status(self.clock.now_s)
        assert self.audit.asked == self.audit.told, "a request for a change has no single outcome"
        for request in self.requests:
            assert request.outcome, f"{request} never ends"
        alive = {i for i, worker in self.workers.items() if worker.alive}
        known = {*state.roster.having("starting", "ready", "stopping", "fencing")}
        assert alive == known, f"processes {alive}, known {known}"
        assert not any(self.workers[i].hangs for i in alive), "a process that hangs is left"
        assert not self.timers, f"timers {self.timers} are left"
        gone = {i for i in self.audit.served_attention if i not in self.workers or i not in alive}
        if status.phase == "waiting":
            assert self.settings.max_restarts == 0 and self.refuses, status
            return
        assert status.phase == "serving", status
        assert self.audit.readmitted == gone, "requests of one that left were not readmitted"
        assert not self.refuses and self.rebalancing_allowed
        members = {*status.attention, *status.expert}
        assert all(self.workers[i].serves is self.exchanges[status.generation] for i in members)
        for instance in alive:
            held = {status.generation} if instance in members else set[int]()
            opened = self.workers[instance].opened
            assert opened.keys() <= held, f"{instance} still holds {opened.keys()}"
        wanted = f"{len(status.attention)}A{len(status.expert)}E"
        assert bool(status.degraded) == (wanted != status.target), status
        if self.settings.max_restarts:
            assert wanted == status.target, status
            assert alive == members | {*status.standby}, status
            assert len(status.standby) == self.stand_by, status

    # --- the machine ----------------------------------------------------------------------------

    def tell(self, event: on.Event) -> None:
        self.audit.hear(event)
        if self.log is not None:
            self.log.append(f"{self.clock.now_s:9.3f} {event}")
        self.perform(self.machine.handle(event, self.clock.now_s))

    def perform(self, actions: Any) -> None:
        for action in actions:
            if self.log is not None:
                self.log.append(f"{'':12s}{action}")
            self.audit.see(action, self)
            PERFORM[type(action)](self, action)
        wrong = [*violations(self.machine.state)]
        assert not wrong, wrong
        for _ in actions:
            self.num_actions += 1
            if self.num_actions in self.faults_at_action:
                self.clock.after(self.dice.random() * 0.01, self.harm)

    def start(self, action: do.StartInstance) -> None:
        worker = self.workers[action.instance] = Worker(self, action.instance, None)
        fate = self.dice.random()
        seconds = self.dice.random() * 2
        if fate < 0.05:
            self.clock.after(seconds, self.kill, action.instance)
        elif fate < 0.07 and not self.is_plain:
            worker.hangs = True
        else:
            self.clock.after(seconds, worker.says, self.on_ready, action.instance)

    def stop(self, action: do.StopInstance) -> None:
        worker = self.workers[action.instance]
        worker.hears(self.kill, action.instance)

    def fence(self, action: do.FenceInstance) -> None:
        """Now and then the host cannot be reached for a while."""
        late = self.dice.random() < 0.1 and action.instance not in self.fencing
        self.fencing.add(action.instance)
        if action.instance in self.routable:
            self.routable.remove(action.instance)
        self.clock.after(7.0 if late else 0.0, self._fence, action.instance)

    def _fence(self, instance: InstanceId) -> None:
        self.kill(instance)
        self.clock.after(self.delay_s(), self.tell, on.InstanceFenced(instance))

    def drain(self, action: do.DrainInstance) -> None:
        self.routable.remove(action.instance)
        assert self.routable, "no attention instance gets requests"
        self._look_whether_drained(action.instance)

    def _look_whether_drained(self, instance: InstanceId) -> None:
        if instance not in self.routable and not any(
            r.owner == instance and not r.outcome for r in self.requests
        ):
            self.clock.after(self.delay_s(), self.tell, on.InstanceDrained(instance))

    def cancel_drain(self, action: do.CancelDrain) -> None:
        self.routable.append(action.instance)

    def open(self, action: do.OpenAtMembers) -> None:
        members = action.membership
        exchange = Exchange(
            members.generation, members.attention, members.expert, members.instances
        )
        assert action.placement.num_instances == len(members.expert)
        self.exchanges[exchange.number] = exchange
        for instance in members.instances:
            worker = self.workers[instance]
            worker.hears(worker.open, exchange)

    def commit(self, action: do.CommitAtMembers) -> None:
        exchange = self.exchanges[action.generation]
        for instance in action.members:
            worker = self.workers[instance]
            worker.hears(worker.commit, exchange, action.abandon)

    def drop(self, action: do.DropAtMembers) -> None:
        for instance in action.members:
            worker = self.workers[instance]
            worker.hears(worker.drop, action.generation)

    def serve(self, action: do.ServeGeneration) -> None:
        self.routable = [*action.membership.attention]
        for instance in action.membership.instances:
            worker = self.workers[instance]
            for number in action.retired:
                worker.hears(worker.drop, number)
        for request in self.requests:
            if request.owner is None and not request.outcome:
                self.admit(request)

    def stop_rebalancing(self, action: do.StopRebalancing) -> None:
        self.rebalancing_allowed = False
        self.stop_asked = True
        if not self.rebalances or action.at_once:
            self.rebalances = False
            late = self.dice.random() < 0.02
            self.clock.after(12.0 if late else 0.0, self.answer_stop)

    def answer_stop(self) -> None:
        if self.stop_asked and not self.rebalances:
            self.stop_asked = False
            moved = self.dice.random() < 0.3 and self.last_epoch > self.machine.state.serving.number
            served = placement(self.last_epoch, len(self.audit.serving.expert)) if moved else None
            self.tell(on.RebalancingStopped(self.last_epoch, served))

    def allow_rebalancing(self, action: do.AllowRebalancing) -> None:
        self.rebalancing_allowed, self.stop_asked = True, False
        assert action.last_number >= self.audit.last_number
        self.last_epoch = max(self.last_epoch, action.last_number)

    def rebalance(self) -> None:
        if self.rebalancing_allowed and not self.rebalances:
            self.rebalances = True
            self.last_epoch += self.dice.randint(1, 3)
            if self.dice.random() < 0.8:
                self.clock.after(self.dice.random(), self.end_rebalance)

    def end_rebalance(self) -> None:
        self.rebalances = False
        self.answer_stop()

    def set_timer(self, action: do.SetTimer) -> None:
        """Timers are late by a little, so that those of nearly one time fire in any order."""
        self.num_timers += 1
        self.timers[action.name] = self.num_timers
        seconds = action.seconds + self.dice.random() * 0.02
        self.clock.after(seconds, self.fire, action.name, self.num_timers)

    def cancel_timer(self, action: do.CancelTimer) -> None:
        del self.timers[action.name]

    def fire(self, name: str, number: int) -> None:
        if self.timers.get(name) == number:
            del self.timers[name]
            in_time = name.split()[0] not in ("open", "commit", "start", "stop")
            assert in_time or not self.is_plain, f"late without a reason: {name}"
            self.tell(on.TimerFired(name))

    # --- requests -------------------------------------------------------------------------------

    def arrive(self) -> None:
        request = Request(len(self.requests), self.dice.randint(1, 5), outcome=self.refuses)
        self.requests.append(request)
        if not self.refuses:
            self.admit(request)

    def admit(self, request: Request) -> None:
        """Gives a request to an attention instance with what it has produced so far."""
        if not self.routable:
            request.owner = None
            return
        request.owner = self.dice.choice(self.routable)
        request.admission += 1
        worker = self.workers[request.owner]
        worker.hears(worker.add, request.number, request.admission, request.done, request.wanted)

    def on_tokens(self, instance: InstanceId, produced: list[tuple[int, int, int]]) -> None:
        """Believes the current admission only, and exactly the next position."""
        for number, admission, position in produced:
            request = self.requests[number]
            if admission == request.admission and not request.outcome:
                assert instance == request.owner and position == request.done
                request.done += 1
                if request.done == request.wanted:
                    request.outcome = "answered"
        self._look_whether_drained(instance)

    def readmit(self, action: do.ReadmitRequests) -> None:
        assert action.instance not in self.routable
        for request in self.requests:
            if request.owner == action.instance and not request.outcome:
                self.admit(request)

    def refuse_requests(self, action: do.RefuseRequests) -> None:
        assert action.reason
        self.refuses = f"refused: {action.reason}"
        for request in self.requests:
            request.outcome = request.outcome or self.refuses

    def accept_requests(self, action: do.AcceptRequests) -> None:
        assert self.refuses
        self.refuses = ""

    # --- trouble --------------------------------------------------------------------------------

    def operate(self) -> None:
        """An operator asks for something, which may be refused."""
        dice = self.dice
        event: on.Event = on.ScaleRequested(dice.randint(1, 3), dice.randint(1, 3), dice.random())
        if dice.random() < 0.15:
            instance = dice.choice(self.audit.serving.instances)
            event = on.ReplaceRequested(instance, dice.random())
        before = self.audit.told
        change = self.machine.state.change
        if isinstance(change, Recovery) and change.phase == "waiting":
            sizes = self.machine.state.target
            event = on.ScaleRequested(sizes.attention, sizes.expert, 1.0)
            self.is_forgiven = True
        try:
            self.tell(event)
        except (ConflictError, RequestError) as error:
            assert str(error) and not self.machine.state.actions
            assert self.audit.told == before
            return
        self.audit.asked += 1
        if dice.random() < 0.3:
            self.clock.after(dice.random() * 3, self.abort)

    def abort(self) -> None:
        """Only before commit, after which the change is completed."""
        change = self.machine.status(self.clock.now_s)
        try:
            self.tell(on.AbortRequested())
        except ConflictError:
            return
        assert change.kind in ("scale", "replace") and change.phase != "committing"
        assert self.machine.state.history[0].outcome == "aborted"

    def harm(self) -> None:
        """Something happens to an instance that lives."""
        alive = [i for i, w in self.workers.items() if w.alive and i not in self.fencing]
        if not alive:
            return
        instance, fate = self.dice.choice(alive), self.dice.random()
        worker = self.workers[instance]
        if self.is_plain:
            fate = fate * 0.5 if fate < 0.75 else fate * 0.6 + 0.2
        if fate < 0.5:
            self.kill(instance)
        elif fate < 0.65:
            worker.hangs = True
            seconds = 1.0 + self.dice.random() * self.dice.choice((0.5, 0.5, 30.0))
            self.clock.after(seconds, self.tell, on.InstanceSilent(instance, f"{instance} hangs"))
        elif fate < 0.75:
            self.tell(on.InstanceSilent(instance, f"{instance} seems to hang"))
        elif fate < 0.85:
            worker.says(self.tell, on.InstanceFailed(instance, f"{instance} failed"))
            self.clock.after(self.dice.random(), self.kill, instance)
        elif fate < 0.9 and self.settings.max_restarts == 10:
            worker.is_spoiled = True
            self.clock.after(60.0, self.mend, worker)
        elif worker.serves is not None:
            others = [i for i in worker.serves.members if i != instance]
            self.broken.add(frozenset((instance, self.dice.choice(others))))

    def mend(self, worker: Worker) -> None:
        """One that opens no generation gets well by itself only while nothing waits for it."""
        if isinstance(self.machine.state.change, Recovery) and worker.alive:
            self.clock.after(60.0, self.mend, worker)
        else:
            worker.is_spoiled = False

    def kill(self, instance: InstanceId) -> None:
        """A process ends; the runtime says so, and its peers notice it, in any order."""
        worker = self.workers[instance]
        if not worker.alive:
            return
        worker.alive = False
        died = on.InstanceDied(instance, f"{instance} died")
        self.clock.after(0.01 + self.dice.random() * 0.1, self.tell, died)
        if worker.serves is not None and self.dice.random() < 0.5:
            for other in worker.serves.members:
                if other != instance and self.workers[other].serves is worker.serves:
                    self.report_link(other, instance, worker.serves.number)

    def report_link(self, instance: InstanceId, other: InstanceId, number: int) -> None:
        """Once for each end and exchange."""
        report = (instance, other, number)
        if report not in self.reported_links:
            self.reported_links.add(report)
            event = on.LinkBroken(instance, other, number, f"{instance} lost {other}")
            self.workers[instance].says(self.tell, event)

    # --- what workers say -----------------------------------------------------------------------

    def on_ready(self, instance: InstanceId) -> None:
        self.tell(on.InstanceReady(instance))

    def on_opened(self, instance: InstanceId, number: int) -> None:
        self.tell(on.MemberOpened(instance, number))

    def on_refused(self, instance: InstanceId, number: int) -> None:
        self.tell(on.MemberRefused(instance, number, "cannot read the checkpoint"))

    def on_committed(self, instance: InstanceId, number: int) -> None:
        self.tell(on.MemberCommitted(instance, number))


PERFORM: dict[type, Callable[[Simulation, Any], None]] = {
    do.StartInstance: Simulation.start,
    do.StopInstance: Simulation.stop,
    do.FenceInstance: Simulation.fence,
    do.DrainInstance: Simulation.drain,
    do.CancelDrain: Simulation.cancel_drain,
    do.StopRebalancing: Simulation.stop_rebalancing,
    do.AllowRebalancing: Simulation.allow_rebalancing,
    do.OpenAtMembers: Simulation.open,
    do.CommitAtMembers: Simulation.commit,
    do.DropAtMembers: Simulation.drop,
    do.ServeGeneration: Simulation.serve,
    do.ReadmitRequests: Simulation.readmit,
    do.RefuseRequests: Simulation.refuse_requests,
    do.AcceptRequests: Simulation.accept_requests,
    do.SetTimer: Simulation.set_timer,
    do.CancelTimer: Simulation.cancel_timer,
    do.ReportChange: lambda service, action: None,
}


def simulate(seed: int, log: list[str] | None = None, trouble: int = 1) -> Simulation:
    """Plays one schedule; what happened is appended to `log`."""
    service = Simulation(seed)
    service.log = log
    service.play(trouble)
    return service


def failure(seed: int, trouble: int = 1) -> str | None:
    """How one schedule went wrong, with all that happened in it; None when it went well."""
    try:
        simulate(seed, None, trouble)
    except Exception:
        log: list[str] = []
        with contextlib.suppress(Exception):
            simulate(seed, log, trouble)
        tail = "\n".join(log[-LOG_LINES:])
        return f"{tail}\n{traceback.format_exc()}\nseed {seed}, trouble {trouble}"
    return None


def main() -> None:
    """Plays schedules until one fails, and prints what happened in it."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--schedules", type=int, default=1_000_000)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--trouble", type=int, default=1, help="how long schedules are")
    arguments = parser.parse_args()
    first = arguments.first_seed
    for seed in range(first, first + arguments.schedules):
        if (told := failure(seed, arguments.trouble)) is not None:
            sys.exit(told)
    print(f"{arguments.schedules} schedules from seed {first} end well")


if __name__ == "__main__":
    main()

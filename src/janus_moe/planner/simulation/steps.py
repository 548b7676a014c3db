"""Continuous batching in lockstep, compiled: millions of steps in seconds.

The decisions are those of `policy.batching`, `policy.paging` (without prefix reuse) and
`policy.routing`; `reference.py` runs that code itself, and tests demand equal answers. What makes
this fast: a decoding request needs no attention until its last step, so a step costs as much as the
requests that begin or end in it. Per instance it keeps how many requests decode, how many KV
positions they hold, and how many of them need a new block at each residue of the step number.

One file on purpose: numba's cache notices a changed file only through the function it compiles, so
after a change of `step_table` change this file too, or empty the cache.
"""

from __future__ import annotations

import numpy as np

from janus_moe.compiled import compiled
from janus_moe.planner.simulation.state import (
    ABSENT,
    ACTIVE,
    BUSY_S,
    CONCURRENCY_S,
    DONE,
    DRAINING,
    OUTPUT,
    PAUSED,
    PREFILL,
    REJECTED,
    RUNNING,
    SECONDS,
    START,
    STEPS,
    TOKENS,
    WAITING,
)
from janus_moe.planner.simulation.step_table import step_seconds
from janus_moe.policy.routing import FULL


@compiled
def _blocks(tokens, size):  # type: ignore[no-untyped-def]
    return (tokens + size - 1) // size


@compiled
def _link(requests, request, before, after):  # type: ignore[no-untyped-def]
    """Into a list, between two neighbours that may be none."""
    requests[request].previous, requests[request].next = before, after
    if before >= 0:
        requests[before].next = request
    if after >= 0:
        requests[after].previous = request


@compiled
def _unlink(requests, request):  # type: ignore[no-untyped-def]
    """Out of a list; returns its neighbours."""
    before, after = requests[request].previous, requests[request].next
    if before >= 0:
        requests[before].next = after
    if after >= 0:
        requests[after].previous = before
    return before, after


@compiled
def _leave_running(requests, here, request):  # type: ignore[no-untyped-def]
    before, after = _unlink(requests, request)
    if before < 0:
        here.run_first = after
    if after < 0:
        here.run_last = before
    here.running -= 1


@compiled
def _route(requests, instances, limits, request):  # type: ignore[no-untyped-def]
    """`policy.routing.choose_instance` over the active instances."""
    asked, size = requests[request], limits.block_size
    needed = _blocks(asked.prompt + asked.output - 1, size)
    best, best_full, best_pressure, best_number = -1, 0.0, 0.0, 0
    for i in range(len(instances)):
        here = instances[i]
        if here.status != ACTIVE or needed > here.capacity:
            continue
        usage = 1.0 - (here.capacity - here.used) / here.capacity
        pressure = usage + here.unstarted / (here.capacity * size)
        number = here.running + here.waiting
        full = pressure if pressure > FULL else 0.0
        better = full < best_full
        if full == best_full:
            better = number < best_number or (number == best_number and pressure < best_pressure)
        if best < 0 or better:
            best, best_full, best_pressure, best_number = i, full, pressure, number
    if best < 0:
        asked.instance = REJECTED
        return
    here = instances[best]
    asked.instance = best
    here.unstarted += asked.prompt
    here.waiting += 1
    _link(requests, request, here.wait_last, -1)
    if here.wait_first < 0:
        here.wait_first = request
    here.wait_last = request


@compiled
def _stop_decoding(here, crossing, phase, computed):  # type: ignore[no-untyped-def]
    """Takes a decoding request with `computed` KV positions out of the sums."""
    here.decoding -= 1
    here.kv -= computed
    crossing[phase] -= 1


@compiled
def _preempt_last(requests, here, crossing, due, step, size):  # type: ignore[no-untyped-def]
    """The latest arrival gives its blocks back and waits again, first in the queue."""
    victim = here.run_last
    lost = requests[victim]
    if victim == here.partial:
        computed = lost.prompt + lost.produced
        here.partial = -1
    else:
        lost.produced = lost.output - (lost.last_step - step + 1)
        computed = lost.prompt + lost.produced - 1
        _stop_decoding(here, crossing, lost.phase, computed)
        if lost.due_previous >= 0:
            requests[lost.due_previous].due_next = lost.due_next
        else:
            due[lost.last_step % len(due)] = lost.due_next
        if lost.due_next >= 0:
            requests[lost.due_next].due_previous = lost.due_previous
    here.used -= _blocks(computed, size)
    _leave_running(requests, here, victim)
    _link(requests, victim, -1, here.wait_first)
    here.wait_first = victim
    if here.wait_last < 0:
        here.wait_last = victim
    here.waiting += 1
    return victim


@compiled
def _grow(requests, here, crossing, due, step, size):  # type: ignore[no-untyped-def]
    """New blocks for the requests that decode into one; returns how many were preempted."""
    wanted = crossing[(-step) % size]
    if wanted <= here.capacity - here.used:
        here.used += wanted
        return 0
    preempted = 0
    request = here.run_first
    while request >= 0:
        if request != here.partial and (requests[request].phase + step) % size == 0:
            while here.capacity - here.used < 1:
                preempted += 1
                if _preempt_last(requests, here, crossing, due, step, size) == request:
                    return preempted
            here.used += 1
        request = requests[request].next
    return preempted


@compiled
def _compute(requests, here, request, first, length, pair_cost):  # type: ignore[no-untyped-def]
    """`length` tokens of `request` from `first` on; True if those are all it has at present."""
    asked = requests[request]
    pairs = length * (first + 0.5 * (length + 1))
    here.planned_tokens += length
    here.planned_kv += max(float(first + length), pair_cost * pairs)
    if first + length < asked.prompt + asked.produced:
        return False
    asked.due_next = here.starting
    here.starting = request
    here.planned_samples += 1
    return True


@compiled
def _plan(requests, here, crossing, due, step, limits, pair_cost):  # type: ignore[no-untyped-def]
    """`policy.batching.Batcher.plan` for one instance; returns how many were preempted."""
    budget = limits.max_num_batched_tokens - here.decoding
    preempted = _grow(requests, here, crossing, due, step, limits.block_size)
    here.planned_tokens = here.planned_samples = here.decoding
    here.planned_kv = here.kv + here.decoding
    partial = here.partial
    if partial >= 0:
        total = requests[partial].prompt + requests[partial].produced
        length = min(budget, total - here.partial_done)
        budget -= length
        if _compute(requests, here, partial, here.partial_done, length, pair_cost):
            here.partial = -1
        here.partial_done += length
    while preempted == 0 and budget > 0 and here.running < limits.max_num_seqs:
        request = here.wait_first
        if request < 0:
            break
        total = requests[request].prompt + requests[request].produced
        needed = _blocks(total, limits.block_size)
        if here.used + needed + here.running > here.capacity:
            break
        _, here.wait_first = _unlink(requests, request)
        if here.wait_first < 0:
            here.wait_last = -1
        _link(requests, request, here.run_last, -1)
        if here.run_first < 0:
            here.run_first = request
        here.run_last = request
        here.waiting -= 1
        here.running += 1
        here.used += needed
        length = min(budget, total)
        budget -= length
        if not _compute(requests, here, request, 0, length, pair_cost):
            here.partial, here.partial_done = request, length
    return preempted


@compiled
def _finish(requests, here, request, size, now):  # type: ignore[no-untyped-def]
    done = requests[request]
    done.finish_s = now
    here.used -= _blocks(done.prompt + done.output - 1, size)
    _leave_running(requests, here, request)


@compiled
def _sample(requests, here, crossing, due, request, step, size, now):  # type: ignore[no-untyped-def]
    """All that `request` had is computed, so it has one token more and decodes from now on."""
    asked = requests[request]
    computed = asked.prompt + asked.produced
    asked.produced += 1
    if np.isnan(asked.first_s):
        asked.first_s = now
        here.unstarted -= asked.prompt
    if asked.produced == asked.output:
        _finish(requests, here, request, size, now)
        return
    here.decoding += 1
    here.kv += computed
    asked.phase = (computed - step - 1) % size
    crossing[asked.phase] += 1
    asked.last_step = step + asked.output - asked.produced
    slot = asked.last_step % len(due)
    asked.due_next, asked.due_previous = due[slot], -1
    if due[slot] >= 0:
        requests[due[slot]].due_previous = request
    due[slot] = request


@compiled
def _commit(requests, instances, crossing, due, step, size, now):  # type: ignore[no-untyped-def]
    """The step is over: lengths grow, requests end, others begin to decode."""
    for i in range(len(instances)):
        instances[i].kv += instances[i].decoding
    request = due[step % len(due)]
    due[step % len(due)] = -1
    while request >= 0:
        done = requests[request]
        after, i = done.due_next, done.instance
        _stop_decoding(instances[i], crossing[i], done.phase, done.prompt + done.output - 1)
        _finish(requests, instances[i], request, size, now)
        request = after
    for i in range(len(instances)):
        here = instances[i]
        request, here.starting = here.starting, -1
        while request >= 0:
            after = requests[request].due_next
            _sample(requests, here, crossing[i], due, request, step, size, now)
            request = after
        if here.status == DRAINING and here.running + here.waiting == 0:
            here.status = ABSENT
            here.drained_s = now


@compiled
def _record(pool, clock, seconds):  # type: ignore[no-untyped-def]
    """Adds the step to its interval, and to the log while there is room."""
    tokens = samples = 0.0
    decoding = running = waiting = 0
    for i in range(len(pool.instances)):
        here = pool.instances[i]
        tokens += here.planned_tokens
        samples += here.planned_samples
        decoding += here.decoding
        running += here.running
        waiting += here.waiting
    row = pool.interval[min(int(clock.now_s / pool.interval_s), len(pool.interval) - 1)]
    row[BUSY_S] += seconds
    row[STEPS] += 1
    row[OUTPUT] += samples
    row[CONCURRENCY_S] += seconds * running
    row[PREFILL] += tokens - decoding
    clock.num_steps += 1
    if clock.num_logged < len(pool.log):
        line = pool.log[clock.num_logged]
        line[START], line[SECONDS], line[TOKENS] = clock.now_s, seconds, tokens
        line[RUNNING], line[WAITING] = running, waiting
        clock.num_logged += 1


@compiled
def run(requests, pool, limits, table, until_s):  # type: ignore[no-untyped-def]
    """Steps that begin before `until_s`; DONE when there is nothing left to do, else PAUSED."""
    clock, instances, size = pool.clock[0], pool.instances, limits.block_size
    while True:
        busy = 0
        for i in range(len(instances)):
            busy += instances[i].running + instances[i].waiting
        if busy == 0:
            if clock.next_arrival == len(requests):
                return DONE
            clock.now_s = max(clock.now_s, requests[clock.next_arrival].arrival_s)
        if clock.now_s >= until_s:
            return PAUSED
        while (
            clock.next_arrival < len(requests)
            and requests[clock.next_arrival].arrival_s <= clock.now_s
        ):
            _route(requests, instances, limits, clock.next_arrival)
            clock.next_arrival += 1
        step = clock.step
        for i in range(len(instances)):
            clock.num_preemptions += _plan(
                requests,
                instances[i],
                pool.crossing[i],
                pool.due,
                step,
                limits,
                table.pair_cost,
            )
        seconds = step_seconds(table, instances)
        if seconds > 0:
            _record(pool, clock, seconds)
        clock.now_s += seconds
        _commit(requests, instances, pool.crossing, pool.due, step, size, clock.now_s)
        clock.step += 1

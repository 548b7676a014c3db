"""Control messages from workers to the engine."""

from __future__ import annotations

import msgspec

from janus_moe.messages.base import Message, StorePut
from janus_moe.messages.sampling import NewTokens
from janus_moe.spec import InstanceId
from janus_moe.tracing import Span


class Hello(Message, frozen=True):
    """A worker process is up and wants its setup."""

    name: str
    pid: int
    version: str


class Progress(Message, frozen=True):
    """Start-up progress of one instance.

    done_bytes: bytes of weights that are loaded; 0 in stages without any.
    """

    instance: InstanceId
    stage: str
    done_bytes: int = 0


class Ready(Message, frozen=True):
    """All instances of the worker are loaded and warmed up; they are in no generation yet."""

    name: str


class GenerationOpened(Message, frozen=True):
    """A worker has opened the exchanges of a generation and has the experts that it needs there."""

    name: str
    generation: int


class GenerationFailed(Message, frozen=True):
    """A worker cannot open a generation; it goes on serving the one before."""

    name: str
    generation: int
    error: str


class GenerationCommitted(Message, frozen=True):
    """A worker has left the generation before, and serves this one if it is in it."""

    name: str
    generation: int


class ExpertActivity(msgspec.Struct, frozen=True, kw_only=True):
    """Distinct activated experts per expert instance, summed over the MoE layers of some steps.

    layers: how many layer passes the sums cover.
    max_activated: sum over passes of the busiest instance's count.
    activated: sum of every expert instance that took part.
    """

    layers: int
    max_activated: int
    activated: dict[InstanceId, int]


class StepDone(Message, frozen=True):
    """One step of one attention instance, or only its load.

    outputs: what the step produced, by request.
    num_running: requests in its batch.
    num_waiting: requests that it has not begun.
    kv_usage: used share of its KV blocks, 0 to 1.
    num_preemptions: since its start.
    step_seconds: duration of the step; 0 without a step.
    dispatch_seconds, combine_seconds: waiting at the exchange, summed over the layers.
    scheduler_seconds: of the slowest expert instance's scheduler, summed over the layers.
    activity: what the expert instances did in the step; None without a step.
    epoch: steps that begin from now on have this placement or a later one, and this instance has
        none under way with an earlier one.
    exchange_plan: of the step's messages over the network; "" for none.
    notices: sentences for the log.
    """

    instance: InstanceId
    outputs: tuple[NewTokens, ...]
    num_running: int
    num_waiting: int
    kv_usage: float
    num_preemptions: int
    step_seconds: float = 0.0
    dispatch_seconds: float = 0.0
    combine_seconds: float = 0.0
    scheduler_seconds: float = 0.0
    activity: ExpertActivity | None = None
    epoch: int = 0
    exchange_plan: str = ""
    notices: tuple[str, ...] = ()


class ExpertLoad(Message, frozen=True):
    """What routing did lately, over a window of batches.

    num_batches: [moe layers] batches.
    num_tokens: [moe layers] tokens of those batches.
    tokens: [moe layers][experts] tokens routed to each.
    changed: what came before has just been forgotten, because routing has changed.
    """

    num_batches: tuple[int, ...]
    num_tokens: tuple[int, ...]
    tokens: tuple[tuple[int, ...], ...]
    changed: bool = False


class EpochPrepared(Message, frozen=True):
    """An expert instance can serve steps of this epoch as well as of its current one."""

    instance: InstanceId
    epoch: int


class EpochFailed(Message, frozen=True):
    """An expert instance cannot prepare an epoch; it goes on serving the current one."""

    instance: InstanceId
    epoch: int
    error: str


class Traced(Message, frozen=True):
    """Answers `Trace`.

    now_ns: the host's clock, in nanoseconds.
    spans: what was recorded, once it has stopped.
    """

    instance: InstanceId
    now_ns: int
    spans: tuple[Span, ...] = ()


class Failed(Message, frozen=True):
    """A worker cannot go on.

    name: the worker, or the instance in it that failed.
    error: a sentence for people, without a stack trace.
    caused_by_peer: it lost peers, and what ended them is more telling. The worker lives on and
        serves the next generation that it is told to.
    peers: those that it lost, if it knows them.
    generation: in whose exchange it lost them.
    """

    name: str
    error: str
    caused_by_peer: bool = False
    peers: tuple[InstanceId, ...] = ()
    generation: int = 0


FromExpert = ExpertLoad | EpochPrepared | EpochFailed
GenerationReport = GenerationOpened | GenerationFailed | GenerationCommitted
StartReport = Hello | Progress | Ready
FromWorker = StartReport | GenerationReport | StepDone | FromExpert | StorePut | Traced | Failed

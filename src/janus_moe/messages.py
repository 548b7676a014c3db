"""Control messages between the engine and its workers: what is said, not how it travels.

Instances are addressed by their ids. Ranks appear only as positions, and only where a message or
the worker's membership says whose. Encoded with msgspec (MessagePack, strict types,
unknown fields and tags rejected). Tensors never travel here; activations have the transport,
weights come from the checkpoint.
"""

from __future__ import annotations

import msgspec

from janus_moe.config import EngineConfig
from janus_moe.spec import InstanceId, Membership, ModelSpec
from janus_moe.tracing import Span


class Message(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True
):  # one tagged union per direction
    """Base of the control messages."""


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How tokens are chosen and when a sequence ends. Defaults as in OpenAI's API.

    temperature: 0 is greedy.
    top_k: 0 keeps all.
    top_p: 1.0 keeps all.
    min_p: 0.0 keeps all.
    seed: a fixed seed gives the same tokens whatever else is in the batch; None draws one.
    logprobs: number of alternatives per produced token; None for no log-probabilities at all.
    prompt_logprobs: the same for prompt tokens (echo).
    stop_token_ids: end the sequence, besides the model's end-of-sequence ids.
    """

    max_tokens: int = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """One token's natural-log probability under the unmodified model, and its best rivals.

    top: (token id, log-probability) pairs, most likely first.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class NewTokens(msgspec.Struct, frozen=True, kw_only=True):
    """What one step produced for one request.

    admission: of the request, as its `AddRequest` said.
    position: of the first token here among all that the request has ever produced, from 0.
    finish_reason: "stop" (end-of-sequence or stop token) or "length"; None while it goes on.
    stop_token_id: the token that ended it, when it was one.
    prompt_logprobs: sent once, before or with the first token; first entry is None (no context).
    num_cached_tokens: prompt tokens served from the prefix cache.
    queued_seconds: from arrival to the first step; sent once.
    """

    request_id: str
    admission: int
    position: int
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    finish_reason: str | None = None
    stop_token_id: int | None = None
    num_cached_tokens: int = 0
    queued_seconds: float | None = None


class ExpertActivity(msgspec.Struct, frozen=True, kw_only=True):
    """Distinct activated experts per expert instance, summed over the MoE layers of some steps.

    layers: how many layer passes the sums cover.
    max_activated: sum over passes of the busiest instance's count.
    activated: sum of every expert instance that took part.
    """

    layers: int
    max_activated: int
    activated: dict[InstanceId, int]


# --- engine -> worker -------------------------------------------------------------------------


class Setup(Message, frozen=True):
    """First message to a worker process: everything it needs to build its instances.

    instances: those of this worker.
    membership: the pools that it starts in, and the epoch of `slots`.
    slots: [moe layers][expert instances] logical expert ids hosted there, in slot order.
    spare_slots: further slots per layer of every expert instance, free at the start.
    links: what messages between instances cost, as `planner.latency.LinkModel` names
        it; {}: not measured.
    """

    instances: tuple[InstanceId, ...]
    spec: ModelSpec
    config: EngineConfig
    checkpoint: str
    num_kv_blocks: int
    num_threads: int
    num_cores: int
    membership: Membership
    slots: tuple[tuple[tuple[int, ...], ...], ...]
    spare_slots: int = 0
    links: dict[str, float] = {}


class AddRequest(Message, frozen=True):
    """A request for an attention instance; it takes the place of an earlier admission there.

    admission: number of this admission, never used again by the engine.
    sampling: its `seed` is always set.
    position: of the first token to produce among all that the request has ever produced. So many
        of the last prompt ids were produced by earlier admissions: they are prompt to the model,
        output to penalties and limits.
    """

    instance: InstanceId
    request_id: str
    admission: int
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    eos_token_ids: tuple[int, ...]
    position: int = 0


class AbortRequest(Message, frozen=True):
    """The attention instance forgets one admission of a request; one that has ended is no error."""

    instance: InstanceId
    request_id: str
    admission: int


class PrepareEpoch(Message, frozen=True):
    """An expert instance loads what the next placement adds, beside what it serves.

    Answered by `EpochPrepared` or `EpochFailed`, unless `DropEpoch` comes first.

    placement: [moe layers][expert instances] logical expert ids, of all instances by rank.
    """

    instance: InstanceId
    epoch: int
    placement: tuple[tuple[tuple[int, ...], ...], ...]


class DropEpoch(Message, frozen=True):
    """Forget an epoch that no step will use; what it loaded may be overwritten."""

    instance: InstanceId
    epoch: int


class UseEpoch(Message, frozen=True):
    """Every expert instance is prepared: announce steps with this epoch from now on.

    Answered by a `StepDone` with it, at once if there is nothing to compute.
    """

    instance: InstanceId
    epoch: int


class Trace(Message, frozen=True):
    """Record spans from now on, or stop; answered by `Traced`. Recording twice starts anew."""

    instance: InstanceId
    recording: bool


class Stop(Message, frozen=True):
    """Finish the current step and exit."""


# --- both ways --------------------------------------------------------------------------------


class StorePut(Message, frozen=True):
    """A value by which instances find each other, such as an address of the transport.

    It goes from the worker that has it to the engine, and from there to all workers.
    """

    key: str
    value: bytes


# --- worker -> engine -------------------------------------------------------------------------


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
    """All instances of the worker are loaded and warmed up."""

    name: str


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
    caused_by_peer: it lost a peer, and what ended the peer is more telling.
    """

    name: str
    error: str
    caused_by_peer: bool = False


ToAttention = AddRequest | AbortRequest | UseEpoch
ToExpert = PrepareEpoch | DropEpoch
ToInstance = ToAttention | ToExpert | Trace
"""What is for the one instance that its field `instance` names."""
ToWorker = Setup | ToInstance | StorePut | Stop
FromExpert = ExpertLoad | EpochPrepared | EpochFailed
FromWorker = Hello | Progress | Ready | StepDone | FromExpert | StorePut | Traced | Failed


def encode(message: Message) -> bytes:
    """One message as MessagePack."""
    return msgspec.msgpack.encode(message)


def decode_to_worker(data: bytes) -> ToWorker:
    """Strict decoding on the worker's side; raises msgspec.DecodeError on anything else."""
    message: ToWorker = msgspec.msgpack.decode(data, type=ToWorker)
    return message


def decode_from_worker(data: bytes) -> FromWorker:
    """Strict decoding on the engine's side; raises msgspec.DecodeError on anything else."""
    message: FromWorker = msgspec.msgpack.decode(data, type=FromWorker)
    return message

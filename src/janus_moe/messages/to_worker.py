"""Control messages from the engine to its workers."""

from __future__ import annotations

import msgspec

from janus_moe.config import EngineConfig
from janus_moe.messages.base import Message, StorePut
from janus_moe.messages.sampling import SamplingParams
from janus_moe.spec import InstanceId, Membership, ModelSpec


class Setup(Message, frozen=True):
    """First message to a worker process: everything it needs to build its instances.

    instances: those of this worker.
    membership: the first pools that it is to be in, and the epoch of `slots`.
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
    links: dict[str, float] = msgspec.field(default_factory=dict)


class OpenGeneration(Message, frozen=True):
    """A worker opens the exchanges of a membership, beside those that it serves.

    Answered by `GenerationOpened` or `GenerationFailed`. Nothing is computed with them before
    `CommitGeneration`.

    membership: the pools of the generation, in which an instance of the worker is.
    slots: [moe layers][expert instances] logical expert ids of its first placement, by rank.
    num_threads: compute threads of each of the worker's instances, from the commit on.
    is_urgent: experts are loaded at full speed, because steps wait for it; else beside steps.
    """

    membership: Membership
    slots: tuple[tuple[tuple[int, ...], ...], ...]
    num_threads: int
    is_urgent: bool = False


class CommitGeneration(Message, frozen=True):
    """A worker leaves the generation that it serves, and serves this one if it has opened it.

    Answered by `GenerationCommitted`.

    abandon: the step under way is given up and computed again; else it is finished before.
    """

    generation: int
    abandon: bool = False


class DropGeneration(Message, frozen=True):
    """A worker closes the exchanges of a generation that it does not serve, or not any more."""

    generation: int


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


ToAttention = AddRequest | AbortRequest | UseEpoch
ToExpert = PrepareEpoch | DropEpoch
ToInstance = ToAttention | ToExpert | Trace
"""What is for the one instance that its field `instance` names."""
GenerationOrder = OpenGeneration | CommitGeneration | DropGeneration
ToWorker = Setup | GenerationOrder | ToInstance | StorePut | Stop

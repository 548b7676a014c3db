"""Attention instances without a model, and connections that delay, lose, double and swap messages.

Batching, KV blocks and reports are the real ones; a token is a hash of all that it may depend on.
"""

from __future__ import annotations

import asyncio
import random
import zlib
from collections import deque
from collections.abc import Sequence

import msgspec
from tests.engine.fake_workers import TOKENIZER

from janus_moe.attention.request import ActiveRequest
from janus_moe.errors import ServiceError
from janus_moe.messages import (
    AbortRequest,
    AddRequest,
    FromWorker,
    SamplingParams,
    StepDone,
    ToInstance,
    TokenLogprob,
)
from janus_moe.policy.batching import Batcher, StepPlan
from janus_moe.policy.paging import BlockManager
from janus_moe.spec import InstanceId

LETTERS = tuple(TOKENIZER.encode("abcde"))
MAX_MODEL_LEN, NUM_BLOCKS, BLOCK_SIZE = 32, 9, 2


def choose_token(
    sampling: SamplingParams, token_ids: Sequence[int], prompt_len: int, forbidden: Sequence[int]
) -> int:
    """The token after `token_ids`: it depends on seed, position, tokens, and which are output."""
    state = f"{sampling.seed} {len(token_ids)} {list(token_ids)} {prompt_len}"
    allowed = [letter for letter in LETTERS if letter not in forbidden]
    return allowed[zlib.crc32(state.encode()) % len(allowed)]


def score(token_ids: Sequence[int], position: int) -> TokenLogprob:
    """The log-probability of the token at a position."""
    return TokenLogprob(token_ids[position], -float(position))


class SimulatedInstance:
    """One attention instance: it batches and reports as the real one does."""

    def __init__(self, instance_id: InstanceId) -> None:
        self.id = instance_id
        blocks = BlockManager(NUM_BLOCKS, BLOCK_SIZE, enable_prefix_caching=True)
        self._batcher = Batcher(blocks, max_num_seqs=3, max_num_batched_tokens=5)
        self._requests: dict[str, ActiveRequest] = {}

    @property
    def has_work(self) -> bool:
        return self._batcher.has_work

    def take(self, message: ToInstance) -> None:
        match message:
            case AddRequest():
                self._forget(message.request_id)
                request = ActiveRequest.admit(message, MAX_MODEL_LEN, 0.0)
                self._requests[message.request_id] = request
                self._batcher.add(request.sequence)
            case AbortRequest(request_id=name, admission=admission):
                held = self._requests.get(name)
                if held is not None and held.message.admission == admission:
                    self._forget(name)
            case other:
                raise TypeError(other)

    def step(self) -> StepDone:
        plan = self._batcher.plan()
        complete = [
            self._requests[one.sequence.request_id] for one in plan.scheduled if one.samples
        ]
        chosen = {
            one.message.request_id: choose_token(
                one.message.sampling,
                one.sequence.token_ids,
                one.sequence.prompt_len,
                one.sampling_row().forbidden_ids,
            )
            for one in complete
        }
        self._score_prompts(plan)
        self._batcher.commit(plan, chosen)
        outputs = []
        for one in complete:
            token_ids = one.sequence.token_ids
            wanted = one.message.sampling.logprobs is not None and not one.scores_only
            logprobs = (score(token_ids, len(token_ids) - 1),) if wanted else None
            report = one.report(
                None if one.scores_only else chosen[one.message.request_id], logprobs
            )
            outputs.append(report)
            if report.finish_reason is not None:
                self._forget(report.request_id)
        return msgspec.structs.replace(self.report(), outputs=tuple(outputs), step_seconds=1.0)

    def report(self) -> StepDone:
        return StepDone(
            instance=self.id,
            outputs=(),
            num_running=self._batcher.num_running,
            num_waiting=self._batcher.num_waiting,
            kv_usage=0.0,
            num_preemptions=self._batcher.num_preemptions,
        )

    def _score_prompts(self, plan: StepPlan) -> None:
        for sequence, start, num_tokens, _ in plan.scheduled:
            request = self._requests[sequence.request_id]
            if request.wants_prompt_logprobs:
                first = max(start + 1, len(request.prompt_entries))
                last = min(start + num_tokens + 1, sequence.prompt_len)
                positions = range(first, last)
                request.add_prompt_entries([score(sequence.token_ids, p) for p in positions])

    def _forget(self, request_id: str) -> None:
        if self._requests.pop(request_id, None) is not None:
            self._batcher.abort(request_id)


class Connection:
    """The messages between the engine and one instance: in order, until its end loses the rest."""

    def __init__(self, instance: SimulatedInstance) -> None:
        self.instance = instance
        self.alive = True
        self.to_instance: deque[ToInstance] = deque()
        self.from_instance: deque[StepDone] = deque()


class SimulatedPool:
    """All attention instances that there ever were, played by a seeded schedule.

    The engine's `Workers`. Nothing moves by itself: the test says who takes what when.

    faults: whether an instance's messages may be lost, doubled and swapped on the way.
    """

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.faults = False
        self.connections: dict[InstanceId, Connection] = {}
        self._arrived: asyncio.Queue[FromWorker] = asyncio.Queue()

    @property
    def alive(self) -> list[Connection]:
        return [one for one in self.connections.values() if one.alive]

    def start(self, instance: InstanceId) -> None:
        self.connections[instance] = Connection(SimulatedInstance(instance))

    def kill(self, connection: Connection) -> None:
        """What is on its way to it is lost; of what it has said, the first part still arrives."""
        connection.alive = False
        connection.to_instance.clear()
        said = connection.from_instance
        for _ in range(self.rng.randint(0, len(said))):
            said.pop()

    def send(self, message: ToInstance) -> None:
        connection = self.connections[message.instance]
        if connection.alive:
            connection.to_instance.append(message)
        elif self.rng.random() < 0.5:
            raise ServiceError(f"{message.instance} cannot be reached")

    def step(self, connection: Connection) -> None:
        """An instance takes what has come, or a part of it, and computes a step."""
        arrived = connection.to_instance
        told = False
        for _ in range(self.rng.randint(0 if self.faults else len(arrived), len(arrived))):
            told |= isinstance(arrived[0], AbortRequest)
            connection.instance.take(arrived.popleft())
        if connection.instance.has_work:
            connection.from_instance.append(connection.instance.step())
        elif told:
            connection.from_instance.append(connection.instance.report())

    def deliver(self, connection: Connection) -> None:
        """The next message of an instance arrives."""
        said, rng = connection.from_instance, self.rng
        if not said:
            return
        message = said.popleft()
        if self.faults:
            ends = any(new.finish_reason is not None for new in message.outputs)
            match rng.choices(("arrive", "lose", "double", "swap"), (90, 3, 4, 3))[0]:
                case "lose" if not ends and connection.alive:
                    return
                case "double":
                    said.insert(rng.randint(0, len(said)), message)
                case "swap" if said:
                    said.insert(1, message)
                    message = said.popleft()
        self._arrived.put_nowait(message)

    async def receive(self) -> FromWorker:
        return await self._arrived.get()

    async def close(self) -> None:
        pass

"""An engine whose workers are played by the test: ids that are no ranks, tokens that are bytes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import msgspec
from tests.server.fake_engine import FakePlacementController, tiny_spec
from tokenizers import Tokenizer as Core
from tokenizers import decoders, models, pre_tokenizers

from janus_moe.config import EngineConfig
from janus_moe.engine.admission import RequestLimits
from janus_moe.engine.engine import Engine
from janus_moe.engine.text.tokenizer import Tokenizer
from janus_moe.messages import AddRequest, FromWorker, NewTokens, StepDone, ToInstance
from janus_moe.spec import InstanceId, Membership

ATTENTION = tuple(InstanceId(pool="attention", number=i) for i in (3, 8))
EXPERTS = tuple(InstanceId(pool="expert", number=i) for i in (2, 5, 6))
MEMBERSHIP = Membership(
    generation=4,
    attention=ATTENTION,
    expert=EXPERTS,
    attention_hosts=(0, 0),
    expert_hosts=(0, 0, 0),
)
LIMITS = RequestLimits(max_model_len=32, cache_tokens=24, vocab_size=256)


def byte_tokenizer() -> Tokenizer:
    """One token a byte; no file is read and transformers is not imported."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Core(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return Tokenizer(SimpleNamespace(backend_tokenizer=core, eos_token_id=0, chat_template=None))


TOKENIZER = byte_tokenizer()
UNNUMBERED = -1


def step(instance: InstanceId, *outputs: NewTokens, **fields: Any) -> StepDone:
    """What an attention instance says after a step."""
    load = {"num_running": 0, "num_waiting": 0, "kv_usage": 0.0, "num_preemptions": 0}
    return StepDone(instance=instance, outputs=outputs, step_seconds=0.5, **(load | fields))


def tokens(
    request_id: str,
    text: str,
    reason: str | None = None,
    admission: int = UNNUMBERED,
    position: int = UNNUMBERED,
) -> NewTokens:
    """A request's part of a step, given as text; `FakeWorkers.say` fills in what is unnumbered."""
    return NewTokens(
        request_id=request_id,
        admission=admission,
        position=position,
        token_ids=tuple(TOKENIZER.encode(text)),
        finish_reason=reason,
    )


class FakeWorkers:
    """Answers the warm-up by itself; what the instances say besides, the test decides.

    mute: instances that never answer."""

    def __init__(self, *mute: InstanceId) -> None:
        self._mute = mute
        self.sent: list[ToInstance] = []
        self._next: dict[str, tuple[int, int]] = {}
        self._said: asyncio.Queue[FromWorker | Exception] = asyncio.Queue()

    def send(self, message: ToInstance) -> None:
        self.sent.append(message)
        if isinstance(message, AddRequest):
            self._next[message.request_id] = (message.admission, message.position)
            if message.request_id.startswith("warm-up") and message.instance not in self._mute:
                self.say(step(message.instance, tokens(message.request_id, "ab", "length")))

    def say(self, message: FromWorker | Exception) -> None:
        """A worker's next message, or the error that the launcher finds."""
        if isinstance(message, StepDone):
            outputs = tuple(map(self._numbered, message.outputs))
            message = msgspec.structs.replace(message, outputs=outputs)
        self._said.put_nowait(message)

    def _numbered(self, new: NewTokens) -> NewTokens:
        """With the number of the latest admission, and the position after what was said before."""
        if new.position != UNNUMBERED:
            return new
        admission, position = self._next.get(new.request_id, (0, 0))
        self._next[new.request_id] = admission, position + len(new.token_ids)
        return msgspec.structs.replace(new, admission=admission, position=position)

    async def receive(self) -> FromWorker:
        said = await self._said.get()
        if isinstance(said, Exception):
            raise said
        return said

    async def close(self) -> None:
        pass

    async def next(self, count: int = 1) -> Sequence[ToInstance]:
        """The next messages that instances were sent, and that there are no more."""
        async with asyncio.timeout(5):
            while len(self.sent) < count:
                await asyncio.sleep(0)
        for _ in range(10):
            await asyncio.sleep(0)
        sent, self.sent = self.sent, []
        assert len(sent) == count, sent
        return sent


def make_engine(**settings: Any) -> Engine:
    """An engine that is still loading. Its settings name other pools than it has."""
    config = EngineConfig(model="tiny", attention_instances=1, expert_instances=1, **settings)
    spec = tiny_spec(LIMITS.vocab_size, LIMITS.max_model_len)
    return Engine(config, spec, TOKENIZER, LIMITS, MEMBERSHIP, FakePlacementController())


@asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[tuple[Engine, FakeWorkers, asyncio.Task[None]]]:
    """An engine that has warmed up, its workers, and the task that runs it."""
    engine, workers, ready = make_engine(**settings), FakeWorkers(), asyncio.Event()
    task = asyncio.create_task(engine.run(workers, ready))
    try:
        async with asyncio.timeout(5):
            await ready.wait()
        workers.sent.clear()
        yield engine, workers, task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

"""Every stream ends with the tokens of an undisturbed run, whatever becomes of the instances.

Seeded schedules lose instances with what they have said, move and drain requests, start instances,
let clients leave, and lose, double, swap and delay messages. A failing seed replays.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

import msgspec
import pytest
from tests.engine.fake_workers import ATTENTION, MEMBERSHIP, TOKENIZER, make_engine
from tests.engine.simulated_pool import LETTERS, SimulatedPool, choose_token, score

from janus_moe.engine.chunks import TokenChunk
from janus_moe.engine.engine import Engine
from janus_moe.messages import SamplingParams, TokenLogprob
from janus_moe.spec import InstanceId, Membership

SEEDS_PER_CASE = 500
MAX_EVENTS = 120
STOPS = ("ab", "cde", "aa")


@dataclass
class Client:
    """One request and what its consumer has got."""

    name: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    stop: tuple[str, ...]
    chunks: list[TokenChunk] = field(default_factory=list)
    left: bool = False
    task: asyncio.Task[None] | None = None

    async def read(self, stream: AsyncGenerator[TokenChunk]) -> None:
        async for chunk in stream:
            self.chunks.append(chunk)

    @property
    def text(self) -> str:
        return "".join(chunk.text for chunk in self.chunks)

    @property
    def token_ids(self) -> list[int]:
        return [token for chunk in self.chunks for token in chunk.token_ids]


@dataclass
class Expected:
    token_ids: list[int]
    text: str
    reason: str = "length"
    stop_reason: int | str | None = None


def undisturbed(client: Client) -> Expected:
    """What a request gives, from the definition: one token after the other."""
    params, produced, text = client.sampling, list[int](), ""
    while len(produced) < params.max_tokens:
        early = len(produced) < params.min_tokens
        token_ids = [*client.prompt_ids, *produced]
        token = choose_token(
            params, token_ids, len(client.prompt_ids), params.stop_token_ids if early else ()
        )
        produced.append(token)
        if token in params.stop_token_ids:
            return Expected(produced, text, "stop", token)
        text += TOKENIZER.decode([token])
        for stop in client.stop:
            if stop in text:
                return Expected(produced, text[: text.index(stop)], "stop", stop)
    return Expected(produced, text)


def check(client: Client) -> None:
    """All of it came, each part once; of a client that has left, the beginning."""
    expected, params = undisturbed(client), client.sampling
    token_ids, chunks = client.token_ids, client.chunks
    if client.left and (not chunks or chunks[-1].finish_reason is None):
        assert token_ids == expected.token_ids[: len(token_ids)]
        assert expected.text.startswith(client.text)
    else:
        assert token_ids == expected.token_ids
        assert client.text == expected.text
        assert (chunks[-1].finish_reason, chunks[-1].stop_reason) == (
            expected.reason,
            expected.stop_reason,
        )
    assert all(chunk.finish_reason is None for chunk in chunks[:-1])
    whole = [*client.prompt_ids, *token_ids]
    begin = len(client.prompt_ids)
    seen = [one for chunk in chunks for one in chunk.logprobs or ()]
    wanted = [] if params.logprobs is None else range(begin, len(whole))
    assert seen == [score(whole, position) for position in wanted]
    for first, chunk in zip((True, *[False] * len(chunks)), chunks, strict=False):
        assert (chunk.queued_s is not None) == first
        assert first or chunk.num_cached_tokens == 0
        entries: tuple[TokenLogprob | None, ...] | None = None
        if first and params.prompt_logprobs is not None:
            entries = (None, *(score(whole, position) for position in range(1, begin)))
        assert chunk.prompt_logprobs == entries


class Schedule:
    """One engine, its pool, its clients, and what a seed makes of them.

    members: of the engine's membership.
    draining: members that are to be emptied.
    untold: instances that have died and of which the engine does not know.
    """

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.pool = SimulatedPool(self.rng)
        self.engine: Engine = make_engine(seed=1 + seed)
        self.clients: list[Client] = []
        self.members = list(ATTENTION)
        self.draining: dict[InstanceId, asyncio.Event] = {}
        self.untold: list[InstanceId] = []
        self._generation = MEMBERSHIP.generation
        self._number = max(one.number for one in ATTENTION)
        for instance in ATTENTION:
            self.pool.start(instance)

    async def run(self) -> None:
        ready = asyncio.Event()
        running = asyncio.create_task(self.engine.run(self.pool, ready))
        try:
            while not ready.is_set():
                await self._advance()
            self.pool.faults = True
            for _ in range(self.rng.randint(10, MAX_EVENTS)):
                self._event()
                await self._breathe()
            await self._settle()
            for client in self.clients:
                check(client)
            self._check_nothing_is_left()
        finally:
            running.cancel()
            tasks = [client.task for client in self.clients if client.task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(running, *tasks, return_exceptions=True)

    def _event(self) -> None:
        events = {
            self._step: 45,
            self._deliver: 45,
            self._ask: 6 if len(self.clients) < 6 else 0,
            self._leave: 1,
            self._kill: 3,
            self._tell: 6,
            self._grow: 2,
            self._drain: 2,
            self._resume: 1,
            self._move: 2,
            self._shrink: 3,
        }
        self.rng.choices(list(events), list(events.values()))[0]()

    def _step(self) -> None:
        if self.pool.alive:
            self.pool.step(self.rng.choice(self.pool.alive))

    def _deliver(self) -> None:
        """Also of those that have died, before or after the engine knows."""
        self.pool.deliver(self.rng.choice(list(self.pool.connections.values())))

    def _ask(self) -> None:
        rng = self.rng
        max_tokens = rng.choice((0, 1, 4, 9))
        sampling = SamplingParams(
            max_tokens=max_tokens,
            min_tokens=rng.randint(0, 3),
            seed=rng.choice((None, 7)),
            stop_token_ids=tuple(rng.sample(LETTERS, rng.randint(0, 1))),
            logprobs=rng.choice((None, 0)),
            prompt_logprobs=rng.choice((None, 0)),
            ignore_eos=True,
        )
        # Drawn here, as the engine would, so that the definition knows it.
        seed = rng.getrandbits(32) if sampling.seed is None else sampling.seed
        client = Client(
            f"r{len(self.clients)}",
            tuple(rng.choice(LETTERS) for _ in range(rng.randint(1, 9))),
            msgspec.structs.replace(sampling, seed=seed),
            tuple(rng.sample(STOPS, rng.randint(0, 2))),
        )
        stream = self.engine.submit(client.name, client.prompt_ids, client.sampling, client.stop)
        client.task = asyncio.create_task(client.read(stream))
        self.clients.append(client)

    def _leave(self) -> None:
        if self.clients:
            client = self.rng.choice(self.clients)
            assert client.task is not None
            client.left = True
            client.task.cancel()

    def _kill(self) -> None:
        if self.pool.alive:
            connection = self.rng.choice(self.pool.alive)
            self.pool.kill(connection)
            if connection.instance.id in self.members:
                self.untold.append(connection.instance.id)

    def _tell(self) -> None:
        """The engine hears of a loss: before, after, or by the membership without it."""
        if not self.untold:
            return
        lost = self.untold.pop(self.rng.randrange(len(self.untold)))
        order = self.rng.choice(("readmit", "readmit, members", "members, readmit", "members"))
        others = [one for one in self.members if one != lost]
        if not others or order.startswith("readmit"):
            self.engine.readmit(lost)
        if others and "members" in order:
            self._use(others)
        if order.endswith(", readmit"):
            self.engine.readmit(lost)

    def _grow(self) -> None:
        self._number += 1
        new = InstanceId(pool="attention", number=self._number)
        self.pool.start(new)
        self._use([*self.members, new])

    def _drain(self) -> None:
        instance = self.rng.choice(self.members)
        self.draining[instance] = self.engine.drain_instance(instance)

    def _resume(self) -> None:
        if self.draining:
            instance = self.rng.choice(list(self.draining))
            del self.draining[instance]
            self.engine.resume_instance(instance)

    def _move(self) -> None:
        instance = self.rng.choice(self.members)
        self.engine.move_requests(instance)
        self.draining[instance] = self.engine.drain_instance(instance)
        assert self.draining[instance].is_set()

    def _shrink(self) -> None:
        """A drained instance leaves, whether it is empty or not."""
        leaving = [one for one in self.draining if one in self.members]
        if leaving and len(self.members) > 1:
            self._use([one for one in self.members if one != leaving[0]])

    def _use(self, members: list[InstanceId]) -> None:
        self._generation += 1
        self.members = members
        self.draining = {one: e for one, e in self.draining.items() if one in members}
        self.engine.use_membership(
            Membership(
                generation=self._generation,
                attention=tuple(members),
                expert=MEMBERSHIP.expert,
                attention_hosts=(0,) * len(members),
                expert_hosts=MEMBERSHIP.expert_hosts,
            )
        )

    async def _settle(self) -> None:
        """No more disturbances: all losses are told, and one instance takes requests."""
        self.pool.faults = False
        while self.untold:
            self._tell()
        self._grow()
        for _ in range(1000):
            if all(client.task is not None and client.task.done() for client in self.clients):
                break
            await self._advance()
        for _ in range(3):
            await self._advance()

    def _check_nothing_is_left(self) -> None:
        streamed = sum(len(client.token_ids) for client in self.clients)
        assert self.engine.counters.generation_tokens >= streamed
        for load in self.engine.loads.observed.values():
            assert (load.num_requests, load.unstarted_tokens) == (0, 0)
        assert all(event.is_set() for event in self.draining.values())
        for connection in self.pool.alive:
            if connection.instance.id in self.members:
                assert not connection.instance.has_work, "an abort did not reach it"

    async def _advance(self) -> None:
        for connection in list(self.pool.connections.values()):
            if connection.alive:
                self.pool.step(connection)
            while connection.from_instance:
                self.pool.deliver(connection)
        await self._breathe()

    async def _breathe(self) -> None:
        for _ in range(3):
            await asyncio.sleep(0)


@pytest.mark.parametrize("case", range(8))
async def test_every_stream_ends_with_the_tokens_of_an_undisturbed_run(case: int) -> None:
    for seed in range(case * SEEDS_PER_CASE, (case + 1) * SEEDS_PER_CASE):
        try:
            await Schedule(seed).run()
        except AssertionError as error:
            raise AssertionError(f"schedule of seed {seed}: {error}") from error

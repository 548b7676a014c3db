"""Claims about the life of requests in an engine, with workers that the test plays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest
from tests.engine.fake_workers import (
    ATTENTION,
    EXPERTS,
    FakeWorkers,
    make_engine,
    serving,
    step,
    tokens,
)

from janus_moe.engine.chunks import TokenChunk
from janus_moe.engine.engine import Engine
from janus_moe.errors import OverloadedError, RequestError, ServiceError, WorkerDied, WorkerFailed
from janus_moe.messages import AbortRequest, AddRequest, SamplingParams

PROMPT = [1, 2, 3]


def submit(
    engine: Engine, name: str, stop: tuple[str, ...] = (), max_tokens: int = 8
) -> AsyncGenerator[TokenChunk]:
    return engine.submit(name, PROMPT, SamplingParams(max_tokens=max_tokens), stop)


async def collect(stream: AsyncGenerator[TokenChunk]) -> list[TokenChunk]:
    async with asyncio.timeout(5):
        return [chunk async for chunk in stream]


async def opened(
    engine: Engine, workers: FakeWorkers, name: str
) -> tuple[AsyncGenerator[TokenChunk], AddRequest]:
    """A stream whose first token has been taken, and what its instance was sent."""
    stream = submit(engine, name)
    first = asyncio.ensure_future(anext(stream))
    [request] = await workers.next()
    assert isinstance(request, AddRequest) and request.request_id == name
    workers.say(step(request.instance, tokens(name, "x")))
    assert (await first).text == "x"
    return stream, request


def abort_of(request: AddRequest) -> AbortRequest:
    return AbortRequest(
        instance=request.instance, request_id=request.request_id, admission=request.admission
    )


async def test_the_warm_up_visits_every_member_and_leaves_no_trace() -> None:
    engine, workers, ready = make_engine(), FakeWorkers(), asyncio.Event()
    with pytest.raises(ServiceError, match="the service is loading: starting"):
        await collect(submit(engine, "early"))
    task = asyncio.create_task(engine.run(workers, ready))
    await asyncio.wait_for(ready.wait(), 5)
    assert [message.instance for message in workers.sent] == list(ATTENTION)
    assert engine.status == "ready"
    snapshot = engine.snapshot()
    assert (snapshot.generation_tokens, snapshot.prompt_tokens, snapshot.waiting) == (0, 0, 0)
    assert snapshot.pool_sizes == {"attention": len(ATTENTION), "expert": len(EXPERTS)}
    task.cancel()


async def test_a_worker_that_fails_in_the_warm_up_ends_the_engine_before_it_is_ready() -> None:
    engine, workers, ready = make_engine(), FakeWorkers(), asyncio.Event()
    workers.say(WorkerFailed("expert 5 failed: no memory"))
    with pytest.raises(WorkerFailed, match="expert 5 failed: no memory"):
        await asyncio.wait_for(engine.run(workers, ready), 5)
    assert not ready.is_set() and engine.status == "loading"


async def test_an_instance_that_never_answers_its_warm_up_is_named_at_the_deadline() -> None:
    engine, ready = make_engine(startup_timeout=0.05), asyncio.Event()
    expected = "^attention 8 did not answer the warm-up request within 0.05 s;.*--startup-timeout"
    with pytest.raises(WorkerFailed, match=expected):
        await asyncio.wait_for(engine.run(FakeWorkers(ATTENTION[1]), ready), 5)
    assert not ready.is_set() and engine.status == "loading"
    assert engine.loads.observed[ATTENTION[1]].num_requests == 0


async def test_a_request_streams_until_its_finish_reason() -> None:
    async with serving() as (engine, workers, _):
        answer = asyncio.create_task(collect(submit(engine, "a")))
        [request] = await workers.next()
        assert isinstance(request, AddRequest)
        assert (request.prompt_ids, request.position) == (tuple(PROMPT), 0)
        assert request.sampling.seed is not None
        workers.say(step(request.instance, tokens("a", "he")))
        workers.say(step(request.instance, tokens("a", "y", "length"), tokens("unknown", "?")))
        chunks = await answer
        assert [(chunk.text, chunk.finish_reason) for chunk in chunks] == [
            ("he", None),
            ("y", "length"),
        ]
        snapshot = engine.snapshot()
        assert (snapshot.prompt_tokens, snapshot.generation_tokens) == (len(PROMPT), 4)
        assert await workers.next(0) == [], "its end is known there"


async def test_new_requests_go_to_the_member_with_fewest_by_its_id() -> None:
    async with serving() as (engine, workers, _):
        homes = []
        streams = []
        for name in "abcd":
            stream, request = await opened(engine, workers, name)
            streams.append(stream)
            homes.append(request.instance)
        assert homes == [*ATTENTION, *ATTENTION]
        for stream in streams:
            await stream.aclose()


async def test_what_can_never_be_served_is_refused_and_no_worker_hears_of_it() -> None:
    async with serving() as (engine, workers, _):
        with pytest.raises(RequestError, match="24"):
            await collect(submit(engine, "long", max_tokens=25))
        assert await workers.next(0) == []
        assert await engine.drain(0.0), "nothing is under way"


async def test_a_full_queue_refuses_until_a_stream_has_ended() -> None:
    async with serving(max_queue=1) as (engine, workers, _):
        stream, _ = await opened(engine, workers, "a")
        with pytest.raises(OverloadedError, match="1 requests are queued"):
            await collect(submit(engine, "b"))
        await stream.aclose()
        await workers.next()
        stream, _ = await opened(engine, workers, "b")
        await stream.aclose()


async def test_a_client_that_leaves_aborts_its_request_where_it_runs() -> None:
    async with serving() as (engine, workers, _):
        await (await opened(engine, workers, "a"))[0].aclose()
        await workers.next()
        stream, request = await opened(engine, workers, "b")
        async with aclosing(stream):
            pass
        assert await workers.next() == [abort_of(request)]
        assert all(load.num_requests == 0 for load in engine.loads.observed.values())
        assert all(load.unstarted_tokens == 0 for load in engine.loads.observed.values())
        workers.say(step(request.instance, tokens("b", "late")))
        assert await workers.next(0) == []


async def test_a_client_that_leaves_before_the_first_token_leaves_no_load() -> None:
    async with serving() as (engine, workers, _):
        answer = asyncio.create_task(collect(submit(engine, "a")))
        [request] = await workers.next()
        assert isinstance(request, AddRequest)
        assert engine.loads.observed[request.instance].unstarted_tokens == len(PROMPT)
        answer.cancel()
        assert await workers.next() == [abort_of(request)]
        load = engine.loads.observed[request.instance]
        assert (load.num_requests, load.unstarted_tokens) == (0, 0)


async def test_a_stop_string_ends_the_stream_and_tells_the_worker() -> None:
    async with serving() as (engine, workers, _):
        answer = asyncio.create_task(collect(submit(engine, "a", stop=("yo",))))
        [request] = await workers.next()
        assert isinstance(request, AddRequest)
        workers.say(step(request.instance, tokens("a", "hey")))
        workers.say(step(request.instance, tokens("a", "o!")))
        workers.say(step(request.instance, tokens("a", "more")))
        chunks = await answer
        assert "".join(chunk.text for chunk in chunks) == "he"
        assert (chunks[-1].finish_reason, chunks[-1].stop_reason) == ("stop", "yo")
        assert await workers.next() == [abort_of(request)]


@pytest.mark.parametrize(
    ("word", "error", "reason"),
    [
        (WorkerFailed("expert 5 failed: no memory"), WorkerFailed, "expert 5 failed: no memory"),
        (WorkerDied("attention 8 died of SIGKILL"), WorkerDied, "attention 8 died of SIGKILL"),
    ],
)
async def test_a_lost_worker_ends_every_stream_with_its_reason(
    word: WorkerFailed | WorkerDied, error: type[ServiceError], reason: str
) -> None:
    async with serving() as (engine, workers, task):
        streams = [(await opened(engine, workers, name))[0] for name in "abc"]
        answers = [asyncio.create_task(collect(stream)) for stream in streams]
        workers.say(word)
        with pytest.raises(error, match=reason) as raised:
            await asyncio.wait_for(task, 5)
        engine.mark_dead(str(raised.value))
        for answer in answers:
            with pytest.raises(ServiceError, match=reason):
                await answer
        with pytest.raises(ServiceError, match=f"the service is dead: {reason}"):
            await collect(submit(engine, "d"))


async def test_a_stream_ends_although_the_worker_to_tell_is_gone() -> None:
    async with serving() as (engine, workers, _):
        stream, _ = await opened(engine, workers, "a")

        def refuse(message: object) -> None:
            raise ServiceError("attention 3 cannot be reached")

        workers.send = refuse  # type: ignore[method-assign]
        await stream.aclose()
        assert await engine.drain(0.0)


async def test_draining_refuses_new_requests_and_waits_for_those_under_way() -> None:
    async with serving() as (engine, workers, _):
        stream, request = await opened(engine, workers, "a")
        answer = asyncio.create_task(collect(stream))
        assert not await engine.drain(0.01), "one is under way"
        draining = asyncio.create_task(engine.drain(5.0))
        with pytest.raises(ServiceError, match="the service is draining: shutting down"):
            await collect(submit(engine, "b"))
        workers.say(step(request.instance, tokens("a", "y", "stop")))
        assert (await answer)[-1].finish_reason == "stop"
        assert await draining


async def test_seeds_are_drawn_from_the_seed_of_the_settings() -> None:
    drawn = []
    for _ in range(2):
        async with serving(seed=7) as (engine, workers, _):
            seeds = []
            for name in "ab":
                stream, request = await opened(engine, workers, name)
                seeds.append(request.sampling.seed)
                await stream.aclose()
                await workers.next()
            drawn.append(seeds)
    assert drawn[0] == drawn[1] and drawn[0][0] != drawn[0][1]

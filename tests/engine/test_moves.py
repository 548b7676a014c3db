"""Claims about requests that are given to another attention instance while their streams go on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable

import msgspec
import pytest
from tests.engine.fake_workers import (
    ATTENTION,
    MEMBERSHIP,
    TOKENIZER,
    FakeWorkers,
    serving,
    step,
    tokens,
)

from janus_moe.engine.chunks import TokenChunk
from janus_moe.engine.engine import Engine
from janus_moe.errors import ServiceError
from janus_moe.messages import (
    AbortRequest,
    AddRequest,
    NewTokens,
    SamplingParams,
    ToInstance,
    TokenLogprob,
)
from janus_moe.spec import InstanceId, Membership

FIRST, SECOND = ATTENTION
THIRD = InstanceId(pool="attention", number=9)
PROMPT = (1, 2, 3)


def members(*attention: InstanceId) -> Membership:
    """The next generation with these attention instances."""
    return msgspec.structs.replace(
        MEMBERSHIP, generation=5, attention=attention, attention_hosts=(0,) * len(attention)
    )


class Stream:
    """One request and what its consumer has got."""

    def __init__(
        self, engine: Engine, name: str, stop: tuple[str, ...] = (), **sampling: object
    ) -> None:
        params = msgspec.convert({"max_tokens": 8, "seed": 5} | sampling, SamplingParams)
        self.chunks: list[TokenChunk] = []
        self.task = asyncio.create_task(self._read(engine.submit(name, PROMPT, params, stop)))

    async def _read(self, stream: AsyncGenerator[TokenChunk]) -> list[TokenChunk]:
        async for chunk in stream:
            self.chunks.append(chunk)
        return self.chunks

    async def end(self) -> list[TokenChunk]:
        return await asyncio.wait_for(self.task, 5)

    @property
    def text(self) -> str:
        return "".join(chunk.text for chunk in self.chunks)


def added(messages: Iterable[ToInstance]) -> AddRequest:
    [message] = messages
    assert isinstance(message, AddRequest)
    return message


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def begun(engine: Engine, workers: FakeWorkers, name: str) -> tuple[Stream, AddRequest]:
    """A stream that has got "he"."""
    stream = Stream(engine, name)
    request = added(await workers.next())
    workers.say(step(request.instance, tokens(name, "he")))
    await settle()
    return stream, request


async def test_a_lost_instance_is_followed_by_another_with_the_next_token() -> None:
    async with serving() as (engine, workers, _):
        stream, request = await begun(engine, workers, "a")
        assert engine.readmit(request.instance) == 1
        again = added(await workers.next())
        assert again.instance == SECOND and again.admission > request.admission
        assert again.prompt_ids == (*PROMPT, *TOKENIZER.encode("he")) and again.position == 2
        assert again.sampling == request.sampling
        workers.say(step(FIRST, tokens("a", "XX", None, request.admission, 2)))
        workers.say(step(SECOND, tokens("a", "y", "length")))
        assert (await stream.end())[-1].finish_reason == "length"
        assert stream.text == "hey"
        seen = engine.snapshot()
        assert (seen.readmissions, seen.dropped_outputs) == (1, 1)
        assert (seen.prompt_tokens, seen.generation_tokens) == (len(PROMPT), 3)


async def test_load_follows_a_request_and_the_lost_instance_has_none() -> None:
    async with serving() as (engine, workers, _):
        await begun(engine, workers, "a")
        engine.readmit(FIRST)
        load = engine.loads.observed[SECOND]
        assert (load.num_requests, load.unstarted_tokens) == (1, len(PROMPT) + 2)
        await workers.next()
        workers.say(step(SECOND, tokens("a", "y"), num_running=1))
        workers.say(step(FIRST, num_running=7, kv_usage=1.0))
        await settle()
        assert (load.num_requests, load.unstarted_tokens) == (1, 0)
        assert FIRST not in engine.loads.observed and engine.snapshot().running == 1
        assert engine.snapshot().kv_usage == 0.0


async def test_late_doubled_and_foreign_tokens_are_dropped() -> None:
    async with serving() as (engine, workers, _):
        stream, request = await begun(engine, workers, "a")
        admission = request.admission
        for position, number in ((0, admission), (1, admission), (2, admission + 9), (2, 0)):
            workers.say(step(FIRST, tokens("a", "Z", "stop", number, position)))
        workers.say(step(FIRST, tokens("a", "y", "length", admission, 2)))
        workers.say(step(FIRST, tokens("a", "y", "length", admission, 2)))
        await stream.end()
        assert stream.text == "hey" and engine.snapshot().dropped_outputs == 4
        assert await workers.next(0) == []


async def test_a_gap_in_the_tokens_begins_the_request_again() -> None:
    async with serving() as (engine, workers, _):
        stream, request = await begun(engine, workers, "a")
        workers.say(step(FIRST, tokens("a", "Z", "stop", request.admission, 3)))
        abort, again = await workers.next(2)
        assert isinstance(abort, AbortRequest) and abort.admission == request.admission
        assert added([again]).position == 2
        workers.say(step(again.instance, tokens("a", "y", "length")))
        await stream.end()
        assert stream.text == "hey"


async def test_what_is_said_once_is_streamed_once() -> None:
    def said(request: AddRequest, position: int, **fields: object) -> NewTokens:
        fields |= {"num_cached_tokens": 2, "queued_seconds": 0.5, "token_ids": (104,)}
        return msgspec.convert(
            {"request_id": "a", "admission": request.admission, "position": position} | fields,
            NewTokens,
        )

    scores = (None, TokenLogprob(2, -1.0), TokenLogprob(3, -2.0))
    async with serving() as (engine, workers, _):
        stream = Stream(engine, "a", logprobs=0, prompt_logprobs=0)
        request = added(await workers.next())
        engine.readmit(request.instance)
        request = added(await workers.next())
        assert request.sampling.prompt_logprobs == 0, "nothing has been heard yet"
        logprobs = (TokenLogprob(104, -0.5),)
        workers.say(step(SECOND, said(request, 0, prompt_logprobs=scores, logprobs=logprobs)))
        await settle()
        engine.use_membership(members(SECOND, THIRD))
        engine.readmit(SECOND)
        request = added(await workers.next())
        assert request.sampling.prompt_logprobs is None, "they need not be computed again"
        logprobs = (TokenLogprob(104, -0.25),)
        workers.say(step(THIRD, said(request, 1, prompt_logprobs=scores, logprobs=logprobs)))
        await settle()
        first, second = stream.chunks
        assert first.prompt_logprobs == scores and second.prompt_logprobs is None
        assert (first.num_cached_tokens, second.num_cached_tokens) == (2, 0)
        assert first.queued_s == pytest.approx(0.5, abs=0.5) and second.queued_s is None
        seen = [one.logprob for chunk in stream.chunks for one in chunk.logprobs or ()]
        assert seen == [-0.5, -0.25]
        stream.task.cancel()


async def test_a_stop_string_and_a_character_may_span_a_move() -> None:
    async with serving() as (engine, workers, _):
        stop, accent = Stream(engine, "stop", stop=("lo w",)), Stream(engine, "accent")
        await workers.next(2)
        half = TOKENIZER.encode("é")
        workers.say(step(FIRST, tokens("stop", "hello")))
        workers.say(
            step(
                SECOND,
                NewTokens(request_id="accent", admission=4, position=0, token_ids=(half[0],)),
            )
        )
        await settle()
        engine.use_membership(members(THIRD))
        assert [added([m]).admission for m in await workers.next(2)] == [5, 6]
        workers.say(step(THIRD, tokens("stop", " world")))
        workers.say(
            step(
                THIRD, NewTokens(request_id="accent", admission=6, position=1, token_ids=(half[1],))
            )
        )
        assert (await stop.end())[-1].stop_reason == "lo w" and stop.text == "hel"
        await settle()
        assert accent.text == "é"
        accent.task.cancel()


async def test_a_request_that_has_ended_is_never_admitted_again() -> None:
    async with serving() as (engine, workers, _):
        stream, request = await begun(engine, workers, "a")
        workers.say(step(request.instance, tokens("a", "y", "length")))
        emptied = engine.drain_instance(request.instance)
        while not emptied.is_set():
            await asyncio.sleep(0)
        assert engine.readmit(request.instance) == 0
        await stream.end()
        assert await workers.next(0) == []


async def test_without_any_instance_requests_wait_in_order_for_the_next_membership() -> None:
    async with serving() as (engine, workers, _):
        streams = [(await begun(engine, workers, name))[0] for name in "ab"]
        engine.readmit(FIRST)
        await workers.next()
        engine.readmit(SECOND)
        streams.append(Stream(engine, "c"))
        assert await workers.next(0) == []
        seen = engine.snapshot()
        assert (seen.waiting, seen.running, seen.kv_usage) == (3, 0, 0.0)
        streams[1].task.cancel()
        await settle()
        engine.use_membership(members(SECOND, THIRD))
        sent = [added([message]) for message in await workers.next(2)]
        assert [(one.request_id, one.instance) for one in sent] == [("a", THIRD), ("c", THIRD)]
        for name in "ac":
            workers.say(step(THIRD, tokens(name, "y", "length")))
        assert (await streams[0].end())[-1].finish_reason == "length"
        await streams[2].end()
        assert [streams[0].text, streams[2].text] == ["hey", "y"]
        assert engine.snapshot().pool_sizes["attention"] == 2
        assert engine.loads.observed[THIRD].num_requests == 0


async def test_waiting_streams_can_be_ended_and_new_requests_refused_for_a_while() -> None:
    async with serving() as (engine, workers, _):
        (here, _), (there, _) = [await begun(engine, workers, name) for name in "ab"]
        engine.refuse("no expert instance has expert 3", 7.5)
        with pytest.raises(ServiceError, match="has expert 3") as refused:
            await Stream(engine, "c").end()
        assert refused.value.retry_after_s == 7.5
        engine.drain_instance(SECOND)
        engine.readmit(FIRST)
        engine.fail_waiting("no attention instance came back", 3.0)
        with pytest.raises(ServiceError, match="came back") as ended:
            await here.end()
        assert ended.value.retry_after_s == 3.0 and not there.task.done()
        engine.fail_all("the experts are gone")
        with pytest.raises(ServiceError, match="the experts are gone"):
            await there.end()
        [abort] = await workers.next()
        assert isinstance(abort, AbortRequest) and abort.instance == SECOND
        assert engine.loads.observed[SECOND].num_requests == 0
        engine.accept()
        engine.resume_instance(SECOND)
        last, request = await begun(engine, workers, "d")
        assert request.instance == SECOND and await engine.drain(0.0) is False
        last.task.cancel()


async def test_a_drained_instance_gets_no_requests_and_tells_when_it_has_none() -> None:
    async with serving() as (engine, workers, _):
        (first, _), (second, _) = [await begun(engine, workers, name) for name in "ab"]
        emptied = engine.drain_instance(FIRST)
        for name in "cd":
            assert (await begun(engine, workers, name))[1].instance == SECOND
        assert not emptied.is_set()
        workers.say(step(FIRST, tokens("a", "y", "length")))
        await first.end()
        assert emptied.is_set() and not second.task.done()
        engine.use_membership(members(SECOND))
        assert await workers.next(0) == []
        await engine.drain(0.0)


async def test_requests_wait_while_all_instances_are_drained_until_one_goes_on() -> None:
    async with serving() as (engine, workers, _):
        for instance in ATTENTION:
            assert engine.drain_instance(instance).is_set()
        stream = Stream(engine, "a")
        assert await workers.next(0) == []
        engine.resume_instance(SECOND)
        assert added(await workers.next()).instance == SECOND
        assert not engine.drain_instance(SECOND).is_set()
        stream.task.cancel()


async def test_requests_can_be_moved_off_an_instance_that_lives() -> None:
    async with serving() as (engine, workers, _):
        (_, old), _ = [await begun(engine, workers, name) for name in "ab"]
        emptied = engine.drain_instance(FIRST)
        assert engine.move_requests(FIRST) == 1 and emptied.is_set()
        abort, again = await workers.next(2)
        assert abort == AbortRequest(instance=FIRST, request_id="a", admission=old.admission)
        assert (again.instance, added([again]).position) == (SECOND, 2)


async def test_only_the_present_admission_is_aborted_when_the_client_leaves() -> None:
    async with serving() as (engine, workers, _):
        stream, _ = await begun(engine, workers, "a")
        engine.readmit(FIRST)
        again = added(await workers.next())
        stream.task.cancel()
        [abort] = await workers.next()
        assert abort == AbortRequest(instance=SECOND, request_id="a", admission=again.admission)


async def test_an_instance_that_cannot_be_reached_keeps_the_request_until_it_is_lost() -> None:
    async with serving() as (engine, workers, _):
        send, unreachable = workers.send, {FIRST}

        def refuse(message: ToInstance) -> None:
            if message.instance in unreachable:
                raise ServiceError(f"{message.instance} cannot be reached")
            send(message)

        workers.send = refuse  # type: ignore[method-assign]
        stream = Stream(engine, "a")
        await settle()
        engine.readmit(FIRST)
        request = added(await workers.next())
        workers.say(step(request.instance, tokens("a", "hey", "length")))
        await stream.end()
        assert stream.text == "hey"

"""Whatever JSON arrives, the answer is a success or a client's error in the known shape."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.server.fake_engine import FakeEngine

from janus_moe.config import ServerConfig
from janus_moe.engine.text.tokenizer import Tokenizer
from janus_moe.server.app import create_app, make_state
from janus_moe.server.parsing import IGNORED, REPLACED, UNSUPPORTED
from janus_moe.server.requests import ChatBody, CompletionBody

NUMBERS = st.one_of(
    st.integers(-3, 40),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(-1, 3),
)
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=8))
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "system", "assistant"]) | VALUES, "content": VALUES}
)


def bodies(kind: type, required: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    names = [field.name for field in msgspec.structs.fields(kind)]
    names += [*IGNORED, *REPLACED, *UNSUPPORTED]
    optional = st.dictionaries(st.sampled_from(sorted(set(names) - required.keys())), VALUES)
    return st.tuples(st.fixed_dictionaries(required), optional.map(lambda d: d)).map(
        lambda pair: {**pair[1], **pair[0]}
    )


COMPLETION = bodies(
    CompletionBody, {"prompt": st.text(min_size=1, max_size=9) | VALUES, "max_tokens": NUMBERS}
)
CHAT = bodies(ChatBody, {"messages": st.lists(MESSAGE, max_size=2)})


@pytest.mark.parametrize(
    ("path", "strategy"), [("/v1/completions", COMPLETION), ("/v1/chat/completions", CHAT)]
)
def test_no_body_is_a_server_error(
    tokenizer: Tokenizer, path: str, strategy: st.SearchStrategy[Any]
) -> None:
    with asyncio.Runner() as runner:
        state = make_state(FakeEngine(tokenizer, max_model_len=64), ServerConfig())
        transport = httpx.ASGITransport(create_app(state))

        async def ask(body: Any) -> httpx.Response:
            async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
                return await client.post(path, json=body)

        @settings(max_examples=120, deadline=None)
        @given(body=strategy)
        def check(body: Any) -> None:
            response = runner.run(ask(body))
            assert response.status_code in (200, 400, 404)
            if response.status_code != 200:
                assert set(response.json()["error"]) == {"message", "type", "param", "code"}

        check()
        state.text.close()

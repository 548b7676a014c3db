from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest
from tests.server.fake_engine import FakeEngine
from tokenizers import Tokenizer as Core
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from janus_moe.config import ServerConfig
from janus_moe.engine.text.tokenizer import Tokenizer, load_tokenizer
from janus_moe.server.app import create_app, make_state

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

MakeClient = Callable[..., httpx.AsyncClient]


def build_tokenizer(folder: Path) -> Path:
    core = Core(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(["the quick brown fox jumps over the lazy dog hello"] * 9, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", chat_template=TEMPLATE
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> Tokenizer:
    return load_tokenizer(tokenizer_folder)


@pytest.fixture
def engine(tokenizer: Tokenizer) -> FakeEngine:
    return FakeEngine(tokenizer)


@pytest.fixture
async def make_client(engine: FakeEngine) -> AsyncIterator[MakeClient]:
    clients = []
    states = []

    def make(**settings: object) -> httpx.AsyncClient:
        state = make_state(engine, ServerConfig(**settings))  # type: ignore[arg-type]
        transport = httpx.ASGITransport(create_app(state), raise_app_exceptions=False)
        client = httpx.AsyncClient(transport=transport, base_url="http://test")
        clients.append(client)
        states.append(state)
        return client

    yield make
    for client in clients:
        await client.aclose()
    for state in states:
        state.text.close()


@pytest.fixture
def client(make_client: MakeClient) -> httpx.AsyncClient:
    return make_client()

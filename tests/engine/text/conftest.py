"""Small real tokenizers, built on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Core
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from janus_moe.engine.text.tokenizer import Tokenizer, load_tokenizer

CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' and m.content == 'forbidden' %}"
    "{{ raise_exception('no forbidden words') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    "{% if greeting %}{{ greeting }}{% endif %}"
)
SPECIAL = ["<|im_start|>", "<|im_end|>"]
CORPUS = ["the quick brown fox jumps over the lazy dog", "grüße €5 日本語 👋🏽 hello world"] * 20


def byte_level_core() -> Any:
    core = Core(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(CORPUS, trainer)
    core.add_tokens(["<think>", "two words"])
    return core


def byte_fallback_core() -> Any:
    """As Llama-2's: spaces marked with U+2581, unknown characters as <0xNN>."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["\u2581", "\u2581he", "llo", "h", "e", "l", "o", "\u2581w", "or", "d"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    core = Core(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    core.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    core.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    core.add_special_tokens(["<unk>", "<s>", "</s>"])
    return core


def save(core: Any, folder: Path, eos: str) -> Path:
    fast = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=eos, chat_template=CHAT_TEMPLATE
    )
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(byte_level_core(), tmp_path_factory.mktemp("byte_level"), SPECIAL[1])


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> Tokenizer:
    return load_tokenizer(tokenizer_folder)


@pytest.fixture(scope="session")
def fallback_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(save(byte_fallback_core(), tmp_path_factory.mktemp("fallback"), "</s>"))

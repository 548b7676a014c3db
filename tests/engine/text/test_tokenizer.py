from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from janus_moe.engine.text.tokenizer import Tokenizer, load_tokenizer
from janus_moe.errors import CheckpointError

TEXT = "grüße 👋🏽 the fox\n"


def test_round_trip(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT)
    assert tokenizer.decode(ids) == TEXT
    assert b"".join(map(tokenizer.token_bytes, ids)) == TEXT.encode()


def test_special_tokens_are_recognised_and_skipped(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("hello<|im_end|>")
    assert ids[-1:] == list(tokenizer.eos_token_ids)
    assert tokenizer.decode(ids) == "hello"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "hello<|im_end|>"


def test_token_text_of_broken_characters_is_distinct(tokenizer: Tokenizer) -> None:
    texts = [tokenizer.token_text(i) for i in range(tokenizer.vocab_size)]
    assert len(set(texts)) == len(texts)
    euro_lead = next(i for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i) == b"\xe2")
    assert tokenizer.token_text(euro_lead) == "bytes:\\xe2"


def test_byte_fallback_bytes(fallback_tokenizer: Tokenizer) -> None:
    ids = fallback_tokenizer.encode("hello €")
    assert b"".join(map(fallback_tokenizer.token_bytes, ids)).decode() == " hello €"


def test_info_has_what_remote_clients_read(tokenizer: Tokenizer) -> None:
    info = tokenizer.info()
    assert info["eos_token"] == "<|im_end|>"
    assert info["bos_token"] is None
    assert "im_start" in info["chat_template"]
    json.dumps(info)


def test_ids_outside_the_vocabulary_decode_to_nothing(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode([tokenizer.vocab_size + 5]) == ""
    assert tokenizer.token_text(tokenizer.vocab_size + 5) == ""


def test_threads_get_the_same_answer(tokenizer: Tokenizer) -> None:
    expected = tokenizer.encode(TEXT * 50)
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: tokenizer.encode(TEXT * 50), range(64)))
    assert all(answer == expected for answer in answers)


def test_encoding_leaves_other_threads_running(tokenizer: Tokenizer) -> None:
    ticks = 0
    done = threading.Event()

    def encode() -> None:
        tokenizer.encode(TEXT * 40_000)
        done.set()

    threading.Thread(target=encode).start()
    while not done.wait(0.002):
        ticks += 1
    assert ticks > 5


def test_folder_without_tokenizer_says_the_flag(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_moe"}')
    with pytest.raises(CheckpointError, match="pass --tokenizer PATH"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", ["{", "{}", '{"model": {"type": "Nope"}}'])
def test_damaged_tokenizer_says_the_flag(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match="pass --tokenizer PATH"):
        load_tokenizer(tmp_path)


def test_code_from_the_folder_never_runs(tokenizer_folder: Path, tmp_path: Path) -> None:
    config = json.loads((tokenizer_folder / "tokenizer_config.json").read_text())
    config |= {"auto_map": {"AutoTokenizer": [None, "evil.Evil"]}, "tokenizer_class": "Evil"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").write_bytes((tokenizer_folder / "tokenizer.json").read_bytes())
    marker = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Evil: pass\n")
    try:
        load_tokenizer(tmp_path)
    except CheckpointError as error:
        assert "--tokenizer" in str(error)
    assert not marker.exists()

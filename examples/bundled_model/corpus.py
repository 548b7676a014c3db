"""What the bundled model learns from: Python's standard library, split by file; its tokenizer.

Does not know the model, the training loop, or the evaluation.
"""

import hashlib
import json
import sysconfig
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_TEXT = "<|endoftext|>"
SPECIAL_TOKENS = (END_OF_TEXT, "<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|endoftext|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
SHARED_LINE_MIN_CHARS = 24


@dataclass(frozen=True)
class SourceFile:
    """One source file: its path relative to the standard library's folder, and its text."""

    path: str
    text: str

    @property
    def num_bytes(self) -> int:
        return len(self.text.encode("utf-8"))


@dataclass(frozen=True)
class Corpus:
    """The two parts of the split; no file is in both, nor an exact or near copy of one."""

    train: tuple[SourceFile, ...]
    held_out: tuple[SourceFile, ...]

    @property
    def train_bytes(self) -> int:
        return sum(file.num_bytes for file in self.train)

    @property
    def held_out_bytes(self) -> int:
        return sum(file.num_bytes for file in self.held_out)


def read_standard_library() -> list[SourceFile]:
    """Every UTF-8 `.py` file of the running interpreter's `Lib`, less installed packages.

    Files that differ from an earlier one in white space alone are left out.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    files: list[SourceFile] = []
    seen: set[str] = set()
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if {"site-packages", "dist-packages"} & set(relative.parts):
            continue
        try:
            text = path.read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            continue  # deliberately broken or legacy-encoded test inputs
        digest = hashlib.sha256(" ".join(text.split()).encode()).hexdigest()
        if not text.strip() or digest in seen:
            continue
        seen.add(digest)
        files.append(SourceFile(relative.as_posix(), text))
    return files


def _long_lines(text: str) -> set[str]:
    stripped = (line.strip() for line in text.splitlines())
    return {line for line in stripped if len(line) >= SHARED_LINE_MIN_CHARS}


def split_corpus(
    files: Sequence[SourceFile],
    drawn_share: float = 0.07,
    max_shared_lines: float = 0.4,
    max_held_out_file_bytes: int = 200_000,
) -> Corpus:
    """Split by a hash of each file's path, so that the same library always splits the same way.

    A file may be held out only if at most `max_shared_lines` of its distinct long lines also occur
    in some other file; generated tables (the code pages) and forked modules are near copies of each
    other. Files above `max_held_out_file_bytes` train, lest one of them be half of the held-out
    text. What is left of the `drawn_share` of the files is about 4 % of the bytes.
    """
    line_counts: Counter[str] = Counter()
    for file in files:
        line_counts.update(_long_lines(file.text))
    train: list[SourceFile] = []
    held_out: list[SourceFile] = []
    for file in files:
        draw = int.from_bytes(hashlib.sha256(file.path.encode()).digest()[:8], "big") / 2**64
        lines = _long_lines(file.text)
        num_shared = sum(line_counts[line] > 1 for line in lines)
        is_distinct = len(lines) >= 5 and num_shared <= max_shared_lines * len(lines)
        is_eligible = is_distinct and file.num_bytes <= max_held_out_file_bytes
        (held_out if draw < drawn_share and is_eligible else train).append(file)
    return Corpus(tuple(train), tuple(held_out))


def train_tokenizer(files: Sequence[SourceFile], vocab_size: int) -> Tokenizer:
    """A byte-level BPE: every byte string has an encoding, so held-out bits per byte are exact."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((file.text for file in files), trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, max_tokens: int) -> None:
    """Write the files from which `transformers.AutoTokenizer` restores the tokenizer."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "model_max_length": max_tokens,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def end_of_text_id(tokenizer: Tokenizer) -> int:
    """The token that ends every file, and that every file is predicted from."""
    token_id = tokenizer.token_to_id(END_OF_TEXT)
    assert token_id is not None
    return token_id


def encode_files(tokenizer: Tokenizer, files: Sequence[SourceFile]) -> list[npt.NDArray[np.int64]]:
    """Per file `tokens: [end-of-text, first token, ..., last token] int64`."""
    end_of_text = end_of_text_id(tokenizer)
    encodings = tokenizer.encode_batch([file.text for file in files], add_special_tokens=False)
    return [np.array([end_of_text, *encoding.ids], dtype=np.int64) for encoding in encodings]


class WindowSampler:
    """Training windows without end: each epoch joins the files in a new order, cuts, shuffles."""

    def __init__(self, files: Sequence[npt.NDArray[np.int64]], seed: int) -> None:
        self._files = list(files)
        self._random = np.random.default_rng(seed)
        self._length = 0
        self._stream = np.empty(0, dtype=np.int64)
        self._starts = np.empty(0, dtype=np.int64)

    def _start_epoch(self, length: int) -> None:
        order = self._random.permutation(len(self._files))
        self._stream = np.concatenate([self._files[i] for i in order])
        offset = int(self._random.integers(length))
        starts = np.arange(offset, len(self._stream) - length, length)
        self._starts = self._random.permutation(starts)
        self._length = length

    def next_windows(self, num_windows: int, length: int) -> npt.NDArray[np.int64]:
        """`windows: [num_windows, length + 1] int64`; inputs are `[:, :-1]`, targets `[:, 1:]`.

        Neighbouring windows come from unrelated places, so that a batch is a fair draw of the text.
        """
        if length != self._length or len(self._starts) < num_windows:
            self._start_epoch(length)
        starts, self._starts = np.split(self._starts, [num_windows])
        windows: npt.NDArray[np.int64] = self._stream[starts[:, None] + np.arange(length + 1)]
        return windows

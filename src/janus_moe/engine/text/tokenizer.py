"""A checkpoint's tokenizer: text to ids, ids to text, and what a single token looks like.

Only files are read, never code from the checkpoint. All methods may be called from any thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from janus_moe.engine.text.pieces import Pieces
from janus_moe.errors import CheckpointError

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")
_NAMED_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")


class Tokenizer:
    """Wraps a transformers tokenizer that is backed by the `tokenizers` library."""

    def __init__(self, hf: Any) -> None:
        self.hf = hf
        self.core: Any = hf.backend_tokenizer
        # Its per-call truncation and padding state is what makes transformers' wrapper unsafe in
        # threads; the core alone, with both switched off once, is not changed by encoding.
        self.core.no_truncation()
        self.core.no_padding()
        self.pieces = Pieces(self.core)
        vocabulary: dict[str, int] = self.core.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        self.max_token_chars = max(map(len, vocabulary), default=0)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        eos = self.hf.eos_token_id
        return () if eos is None else (int(eos),)

    @property
    def special_ids(self) -> frozenset[int]:
        return self.pieces.special_ids

    @property
    def chat_template(self) -> str | None:
        """The template that came with the checkpoint, its default one if there are several."""
        template = self.hf.chat_template
        if isinstance(template, dict):
            template = template.get("default")
        return template if isinstance(template, str) else None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids, with the special tokens the model wants around a text unless told not to."""
        # The batch call releases the interpreter lock while it works, the single one does not.
        batch = self.core.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = batch[0].ids
        return ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        text: str = self.core.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def token_bytes(self, token_id: int) -> bytes:
        return self.pieces[token_id]

    def token_text(self, token_id: int) -> str:
        """The token as text, or `bytes:\\xe2\\x82` where its bytes are not whole characters."""
        raw = self.pieces[token_id]
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def info(self) -> dict[str, Any]:
        """What a remote client needs to use this tokenizer; without paths."""
        named = {name: getattr(self.hf, name, None) for name in _NAMED_TOKENS}
        return {
            "tokenizer_class": type(self.hf).__name__,
            "vocab_size": self.vocab_size,
            "chat_template": self.chat_template,
            "added_tokens_decoder": {
                str(token_id): {"content": token.content, "special": token.special}
                for token_id, token in sorted(self.core.get_added_tokens_decoder().items())
            },
            **{name: None if token is None else str(token) for name, token in named.items()},
        }


def load_tokenizer(source: str | Path) -> Tokenizer:
    """Tokenizer of a folder or of a model in the local Hugging Face cache.

    Raises CheckpointError when there is none or it is of a kind that cannot be served.
    """
    folder = Path(source)
    # transformers answers a folder without tokenizer files with an empty tokenizer.
    if folder.is_dir() and not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise CheckpointError(
            f"{source} contains no tokenizer (looked for {', '.join(_TOKENIZER_FILES)}); "
            "pass --tokenizer PATH"
        )
    from transformers import AutoTokenizer  # seconds to import, and only needed here

    try:
        hf = AutoTokenizer.from_pretrained(
            str(source), trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise CheckpointError(
            f"cannot load a tokenizer from {source} ({error}); pass --tokenizer PATH"
        ) from error
    if getattr(hf, "backend_tokenizer", None) is None:
        raise CheckpointError(
            f"the tokenizer in {source} ({type(hf).__name__}) has no tokenizer.json form; "
            "pass --tokenizer PATH with one that has"
        )
    return Tokenizer(hf)

"""Recorded routing: the top-k ids of every layer and token, batch by batch, and its file.

File format, version 1; all numbers little-endian and unsigned:

    bytes  content
    8      b"JANUSRT" and a newline
    4      version, 1
    4      crc32 of everything after it
    4 x 3  layers, experts, top_k
    4      zero
    8 x 2  tokens, batches
    ------ 48 bytes of header
    4 x batches                  tokens of each batch; they sum up to tokens
    layers x tokens x top_k x w  ids, layer by layer, batches in order; w = 1 byte with up to 256
                                 experts, else 2

A file is read whole or refused. Padding is not recorded.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from janus_moe.compiled import compiled
from janus_moe.errors import ConfigError

MAGIC = b"JANUSRT\n"
VERSION = 1
PREFIX = struct.Struct("<8sII")
SHAPE = struct.Struct("<IIIIQQ")
HEADER_BYTES = PREFIX.size + SHAPE.size
MAX_EXPERTS = 65_536


@dataclass(frozen=True, eq=False)
class RoutingTrace:
    """ids: [layers, tokens, top_k] uint8 or uint16. batch_sizes: [batches] tokens of each batch."""

    num_experts: int
    ids: NDArray[np.unsignedinteger]
    batch_sizes: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.ids.ndim != 3 or self.ids.dtype != id_type(self.num_experts):
            raise ConfigError(
                f"ids of {self.num_experts} experts must be {id_type(self.num_experts)} [layers, "
                f"tokens, top_k], got {self.ids.dtype} with shape {self.ids.shape}"
            )
        if self.batch_sizes.sum() != self.ids.shape[1]:
            raise ConfigError(
                f"batches sum up to {self.batch_sizes.sum()} tokens, but there are "
                f"{self.ids.shape[1]}"
            )
        if self.ids.size and int(self.ids.max()) >= self.num_experts:
            layer, token, _ = np.argwhere(self.ids >= self.num_experts)[0]
            raise ConfigError(
                f"token {token} of layer {layer} uses expert {self.ids[layer, token].max()}, but "
                f"ids run from 0 to {self.num_experts - 1}"
            )

    @property
    def num_layers(self) -> int:
        return int(self.ids.shape[0])

    @property
    def num_tokens(self) -> int:
        return int(self.ids.shape[1])

    @property
    def top_k(self) -> int:
        return int(self.ids.shape[2])

    def batches(self, layer: int) -> Iterator[NDArray[np.int32]]:
        """[tokens, top_k] of each recorded batch."""
        end = 0
        for size in self.batch_sizes.tolist():
            yield self.ids[layer, end : end + size].astype(np.int32)
            end += size

    def sample(self, layer: int, num_tokens: int, rng: np.random.Generator) -> NDArray[np.int32]:
        """A batch of any size: tokens drawn with replacement from the whole trace."""
        if self.num_tokens == 0:
            raise ConfigError("the trace holds no token to sample from")
        chosen: NDArray[np.unsignedinteger] = self.ids[layer]
        return chosen[rng.integers(0, self.num_tokens, num_tokens)].astype(np.int32)

    def split(self, num_batches: int) -> tuple[RoutingTrace, RoutingTrace]:
        """The first batches and the rest, to plan on one and test on the other."""
        tokens = int(self.batch_sizes[:num_batches].sum())
        first = RoutingTrace(self.num_experts, self.ids[:, :tokens], self.batch_sizes[:num_batches])
        rest = RoutingTrace(self.num_experts, self.ids[:, tokens:], self.batch_sizes[num_batches:])
        return first, rest

    def save(self, path: Path) -> None:
        """Replaces the file as a whole: a reader, or a crash meanwhile, finds the one before."""
        shape = SHAPE.pack(
            self.num_layers, self.num_experts, self.top_k, 0, self.num_tokens, len(self.batch_sizes)
        )
        crc = zlib.crc32(shape)
        for part in self._parts():
            crc = zlib.crc32(part, crc)
        with partial_path(path).open("wb") as file:
            file.write(PREFIX.pack(MAGIC, VERSION, crc) + shape)
            for part in self._parts():
                file.write(part)
        partial_path(path).replace(path)

    def _parts(self) -> Iterator[bytes]:
        """The body in pieces, so that no copy of the whole is made."""
        yield self.batch_sizes.astype("<u4").tobytes()
        for layer in self.ids:
            yield layer.astype(layer.dtype.newbyteorder("<"), copy=False).tobytes()

    @classmethod
    def load(cls, path: Path) -> RoutingTrace:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
        if len(data) < HEADER_BYTES or data[: len(MAGIC)] != MAGIC:
            raise ConfigError(f"{path} is not a routing trace: its first bytes are {data[:8]!r}")
        _, version, crc = PREFIX.unpack_from(data)
        layers, experts, top_k, zero, tokens, batches = SHAPE.unpack_from(data, PREFIX.size)
        if version != VERSION:
            raise ConfigError(
                f"{path} is a routing trace of version {version}; this release reads {VERSION}"
            )
        if zero != 0 or not 1 <= experts <= MAX_EXPERTS:
            raise ConfigError(
                f"{path} says {experts} experts; from 1 to {MAX_EXPERTS} are possible"
            )
        width = id_type(experts).itemsize
        expected = HEADER_BYTES + 4 * batches + layers * tokens * top_k * width
        if len(data) != expected:
            raise ConfigError(
                f"{path} has {len(data)} bytes, but {layers} layers x {tokens} tokens x top-"
                f"{top_k} in {batches} batches take {expected}; it is cut short or damaged"
            )
        if zlib.crc32(data[PREFIX.size :]) != crc:
            raise ConfigError(f"{path} is damaged: its checksum does not match its content")
        sizes = np.frombuffer(data, "<u4", batches, HEADER_BYTES).astype(np.int64)
        ids = np.frombuffer(data, f"<u{width}", -1, HEADER_BYTES + 4 * batches)
        shaped = ids.reshape(layers, tokens, top_k).astype(id_type(experts))
        try:
            return cls(experts, shaped, sizes)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error


class TraceRecorder:
    """Collects the routing of a running model: every layer of every batch once, in any order.

    max_tokens: what comes after so many tokens is left out, in the middle of a batch if need be.
        With it, memory for all of them is reserved at once, layers x max_tokens x top_k x 1 or 2
        bytes, of which the operating system provides what has been used; without, it grows.

    One thread records; others may read what is complete meanwhile, with `first_batches`.
    """

    def __init__(self, num_layers: int, num_experts: int, max_tokens: int | None = None) -> None:
        if not 1 <= num_experts <= MAX_EXPERTS:
            raise ConfigError(f"{num_experts} experts; from 1 to {MAX_EXPERTS} are possible")
        if max_tokens is not None and max_tokens < 1:
            raise ConfigError(f"max_tokens must be at least 1, got {max_tokens}")
        self.max_tokens = max_tokens
        self._num_experts = num_experts
        self._ids: NDArray[np.unsignedinteger] = np.empty((num_layers, 0, 0), id_type(num_experts))
        self._num_tokens = [0] * num_layers
        self._sizes: list[list[int]] = [[] for _ in range(num_layers)]
        _append(np.empty((0, 1), np.int32), 1, np.empty((0, 1), self._ids.dtype))  # compiles

    @property
    def num_tokens(self) -> int:
        """Tokens that all layers have recorded."""
        return min(self._num_tokens)

    @property
    def num_batches(self) -> int:
        """Batches that all layers have recorded."""
        return min(map(len, self._sizes))

    @property
    def full(self) -> bool:
        return self.num_tokens == self.max_tokens

    def record(self, layer: int, expert_ids: NDArray[np.int32]) -> None:
        """expert_ids: [tokens, top_k] logical ids; rows of padding (-1 first) are left out."""
        start = self._num_tokens[layer]
        if start == self.max_tokens:
            return
        self._make_room(start + len(expert_ids), expert_ids.shape[1])
        room = self._ids[layer, start:]
        count = _append(np.ascontiguousarray(expert_ids, np.int32), self._num_experts, room)
        if count < 0:
            raise ValueError(
                f"expert ids of layer {layer} must run from 0 to {self._num_experts - 1}; got "
                f"{expert_ids.min()} to {expert_ids.max()}"
            )
        self._sizes[layer].append(count)
        self._num_tokens[layer] += count

    def forget_unfinished(self) -> None:
        """Forgets batches that not all layers have recorded, since they were dropped."""
        finished = self.num_batches
        for layer, own in enumerate(self._sizes):
            self._num_tokens[layer] -= sum(own[finished:])
            del own[finished:]

    def trace(self) -> RoutingTrace:
        """What has been recorded; all layers must have seen the same batches."""
        for layer, own in enumerate(self._sizes):
            if own != self._sizes[0] or not own:
                raise ConfigError(
                    f"layer {layer} recorded {len(own)} batches with {sum(own)} tokens, layer 0 "
                    f"{len(self._sizes[0])} with {sum(self._sizes[0])}; record every layer of "
                    "every batch"
                )
        return self.first_batches(self.num_batches)

    def first_batches(self, num_batches: int) -> RoutingTrace:
        """A trace of batches that all layers have recorded; what is recorded later leaves it as
        it is, though it shares memory."""
        sizes = np.array(self._sizes[0][:num_batches], np.int64)
        return RoutingTrace(self._num_experts, self._ids[:, : int(sizes.sum())], sizes)

    def _make_room(self, num_tokens: int, top_k: int) -> None:
        layers, capacity, _ = self._ids.shape
        if capacity >= min(num_tokens, self.max_tokens or num_tokens) and capacity > 0:
            return
        new = self.max_tokens or max(num_tokens, 2 * capacity, 4096)
        grown = np.empty((layers, new, top_k), self._ids.dtype)
        if capacity:
            grown[:, :capacity] = self._ids
        self._ids = grown


def id_type(num_experts: int) -> np.dtype[np.unsignedinteger]:
    return np.dtype(np.uint8 if num_experts <= 256 else np.uint16)


def partial_path(path: Path) -> Path:
    """Where a trace is written before it gets its name."""
    return path.with_name(path.name + ".partial")


def check_target(path: Path) -> None:
    """Raises ConfigError when no trace can be written there, or it would replace another file."""
    try:
        if path.exists():
            if not path.is_file():
                raise ConfigError(f"{path} is not a file, so no routing trace can replace it")
            with path.open("rb") as file:
                if file.read(len(MAGIC)) not in (b"", MAGIC):
                    raise ConfigError(
                        f"{path} exists and is not a routing trace; name another file"
                    )
        partial_path(path).touch()
        partial_path(path).unlink()
    except OSError as error:
        raise ConfigError(
            f"a routing trace cannot be written to {path}: {error.strerror}; name a file in a "
            "folder that exists and can be written to"
        ) from None


@compiled
def _append(expert_ids, num_experts, room):  # type: ignore[no-untyped-def]
    """Copies real rows while there is room; how many, or -1 for an id that is out of range."""
    count = 0
    for token in range(expert_ids.shape[0]):
        if expert_ids[token, 0] < 0:
            continue
        if count == room.shape[0]:
            break
        for choice in range(expert_ids.shape[1]):
            expert = expert_ids[token, choice]
            if expert < 0 or expert >= num_experts:
                return -1
            room[count, choice] = expert
        count += 1
    return count

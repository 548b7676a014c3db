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
        sizes = self.batch_sizes.astype("<u4").tobytes()
        body = sizes + self.ids.astype(self.ids.dtype.newbyteorder("<")).tobytes()
        shape = SHAPE.pack(
            self.num_layers, self.num_experts, self.top_k, 0, self.num_tokens, len(self.batch_sizes)
        )
        path.write_bytes(PREFIX.pack(MAGIC, VERSION, zlib.crc32(shape + body)) + shape + body)

    @classmethod
    def load(cls, path: Path) -> RoutingTrace:
        data = path.read_bytes()
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
    """Collects the routing of a running model: every layer of every batch once, in any order."""

    def __init__(self, num_layers: int, num_experts: int) -> None:
        if not 1 <= num_experts <= MAX_EXPERTS:
            raise ConfigError(f"{num_experts} experts; from 1 to {MAX_EXPERTS} are possible")
        self._num_experts = num_experts
        self._batches: list[list[NDArray[np.unsignedinteger]]] = [[] for _ in range(num_layers)]

    def record(self, layer: int, expert_ids: NDArray[np.int32]) -> None:
        """expert_ids: [tokens, top_k] logical ids; rows of padding (-1) are left out."""
        real = expert_ids[expert_ids[:, 0] >= 0]
        if real.size and not 0 <= int(real.min()) <= int(real.max()) < self._num_experts:
            raise ValueError(
                f"expert ids of layer {layer} must run from 0 to {self._num_experts - 1}; got "
                f"{real.min()} to {real.max()}"
            )
        self._batches[layer].append(real.astype(id_type(self._num_experts)))

    def trace(self) -> RoutingTrace:
        """What has been recorded; all layers must have seen the same batches."""
        sizes = [[len(batch) for batch in batches] for batches in self._batches]
        for layer, own in enumerate(sizes):
            if own != sizes[0] or not own:
                raise ConfigError(
                    f"layer {layer} recorded {len(own)} batches with {sum(own)} tokens, layer 0 "
                    f"{len(sizes[0])} with {sum(sizes[0])}; record every layer of every batch"
                )
        ids = np.stack([np.concatenate(batches) for batches in self._batches])
        return RoutingTrace(self._num_experts, ids, np.array(sizes[0], np.int64))


def id_type(num_experts: int) -> np.dtype[np.unsignedinteger]:
    return np.dtype(np.uint8 if num_experts <= 256 else np.uint16)

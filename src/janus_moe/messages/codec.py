"""Control messages as MessagePack."""

from __future__ import annotations

import msgspec

from janus_moe.messages.base import Message
from janus_moe.messages.from_worker import FromWorker
from janus_moe.messages.to_worker import ToWorker


def encode(message: Message) -> bytes:
    """One message as MessagePack."""
    return msgspec.msgpack.encode(message)


def decode_to_worker(data: bytes) -> ToWorker:
    """Strict decoding on the worker's side; raises msgspec.DecodeError on anything else."""
    message: ToWorker = msgspec.msgpack.decode(data, type=ToWorker)
    return message


def decode_from_worker(data: bytes) -> FromWorker:
    """Strict decoding on the engine's side; raises msgspec.DecodeError on anything else."""
    message: FromWorker = msgspec.msgpack.decode(data, type=FromWorker)
    return message

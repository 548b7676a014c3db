"""Every process's copy of the control block, kept up to date by small messages.

A line is written by one instance only, so each instance sends its own line to all others: an
attention instance when it announces a step, any instance that waits for long, and one that leaves,
with the reason. The layers of a step need no broadcast. One thread per peer receives; what it
learns it hands to callbacks. This module does not know what lines mean.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

import msgspec
import torch

from janus_moe.errors import (
    ExchangeClosed,
    ExchangeError,
    ExchangeTimeout,
    JanusError,
    PeerLost,
)
from janus_moe.spec import Spec
from janus_moe.transport.lockstep.control_block import LINE_WORDS, WORD_BYTES
from janus_moe.transport.network.channel import Channel, ChannelAborted, Pending

CONTROL_TAG = 1 << 30
_LINE_BYTES = LINE_WORDS * WORD_BYTES
_NOTICE_BYTES = 952
_SIZE = _LINE_BYTES + WORD_BYTES + _NOTICE_BYTES
_MAX_TEXT = 160  # characters; leaves room for the rest, whatever they are
_KEPT = 64
_FLUSH_S = 0.2


class LeaveNotice(Spec, frozen=True):
    """Why an instance leaves.

    kind: of the error that ended it.
    text: names the peer when that is late or lost; else it is the error.
    stage, step, layer, waited_s: of a peer that is late or lost.
    """

    kind: Literal["closed", "late", "lost", "failed"]
    text: str
    stage: str = ""
    step: int = 0
    layer: int = 0
    waited_s: float = 0.0

    @classmethod
    def of(cls, error: ExchangeError) -> LeaveNotice:
        if isinstance(error, ExchangeTimeout):
            return cls(
                kind="late",
                text=error.peer[:_MAX_TEXT],
                stage=error.stage[:16],
                step=error.step,
                layer=error.layer,
                waited_s=error.waited_s,
            )
        if isinstance(error, PeerLost):
            return cls(
                kind="lost",
                text=error.peer[:_MAX_TEXT],
                stage=error.stage[:16],
                step=error.step,
                layer=error.layer,
            )
        kind: Literal["closed", "failed"] = "failed"
        if isinstance(error, ExchangeClosed):
            kind = "closed"
        return cls(kind=kind, text=str(error)[:_MAX_TEXT])

    def error(self, sender: str) -> ExchangeError:
        """The same error, for an instance that `sender` told."""
        if self.kind == "late":
            return ExchangeTimeout(
                peer=self.text,
                stage=self.stage,
                step=self.step,
                layer=self.layer,
                waited_s=self.waited_s,
            )
        if self.kind == "lost":
            return PeerLost(peer=self.text, stage=self.stage, step=self.step, layer=self.layer)
        if self.kind == "closed":
            return ExchangeClosed(f"{sender} left the exchange: {self.text}")
        return ExchangeError(f"{sender}: {self.text}")


class ControlBroadcast:
    """One instance's exchange of lines with all others; callbacks come from other threads.

    words: the control block of this process.
    on_line: called after a peer's line has changed.
    on_peer_left: called with global rank and notice when a peer leaves.
    on_peer_lost: called with the global rank when a connection ends without a notice.
    """

    def __init__(
        self,
        rank: int,
        num_ranks: int,
        channel: Channel,
        words: memoryview,
        on_line: Callable[[], None],
        on_peer_left: Callable[[int, LeaveNotice], None],
        on_peer_lost: Callable[[int], None],
    ) -> None:
        self._rank = rank
        self._peers = [peer for peer in range(num_ranks) if peer != rank]
        self._channel = channel
        self._words = words
        self._on_line = on_line
        self._on_peer_left = on_peer_left
        self._on_peer_lost = on_peer_lost
        self._lock = threading.Lock()
        self._sent: deque[tuple[list[Pending], torch.Tensor]] = deque(maxlen=_KEPT)
        self._last = b""
        self._threads = [
            threading.Thread(
                target=self._listen, args=(peer,), name=f"broadcast {peer}", daemon=True
            )
            for peer in self._peers
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def publish(self, *, even_if_unchanged: bool = True) -> None:
        """Sends this instance's line to all peers; never blocks."""
        line = bytes(self._line(self._rank))
        with self._lock:
            if line != self._last or even_if_unchanged:
                self._last = line
                self._send(line, b"")

    def leave(self, error: ExchangeError) -> None:
        """Sends the line with a reason for leaving, and gives it a moment to go out."""
        with self._lock:
            data = msgspec.msgpack.encode(LeaveNotice.of(error))
            pendings = self._send(bytes(self._line(self._rank)), data)
        for pending in pendings:
            with suppress(TimeoutError, ConnectionError, ChannelAborted):
                pending.wait(_FLUSH_S)

    def join(self, timeout_s: float) -> None:
        """Waits for the threads to end, once the channel is aborted; `timeout_s` for all of them.

        One of them may never end: gloo loses track of a message that is under way when its
        connection closes. Such a thread sleeps, and ends with the process.
        """
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))

    def _line(self, rank: int) -> memoryview:
        start = (1 + rank) * LINE_WORDS  # line 0 is the control block's own
        return self._words[start : start + LINE_WORDS].cast("B")

    def _send(self, line: bytes, notice: bytes) -> list[Pending]:
        length = len(notice).to_bytes(WORD_BYTES, "little")
        data = bytearray((line + length + notice).ljust(_SIZE, b"\0"))
        buffer = torch.frombuffer(data, dtype=torch.uint8)
        pendings = []
        for peer in self._peers:
            with suppress(
                ConnectionError, ChannelAborted
            ):  # the thread that receives from it tells
                pendings.append(self._channel.send(peer, CONTROL_TAG, buffer))
        # Buffers outlive their sends; a peer that takes none of so many is late anyway.
        self._sent.append((pendings, buffer))
        return pendings

    def _listen(self, peer: int) -> None:
        buffer = torch.zeros(_SIZE, dtype=torch.uint8)
        data = buffer.numpy().data
        try:
            while True:
                self._channel.receive(peer, CONTROL_TAG, buffer).wait()
                self._line(peer)[:] = data[:_LINE_BYTES]
                self._on_line()
                end = _LINE_BYTES + WORD_BYTES
                length = int.from_bytes(data[_LINE_BYTES:end], "little")
                if length:
                    self._on_peer_left(peer, decode_leave_notice(bytes(data[end : end + length])))
                    # Nothing comes after it, and gloo may lose track of a receive that is posted
                    # while its connection closes.
                    return
        except ChannelAborted:
            return
        except ConnectionError:
            self._on_peer_lost(peer)


def decode_leave_notice(data: bytes) -> LeaveNotice:
    try:
        return msgspec.msgpack.decode(data, type=LeaveNotice)
    except (msgspec.DecodeError, JanusError) as error:
        text = f"it left with an unreadable reason: {error}"
        return LeaveNotice(kind="failed", text=text[:_MAX_TEXT])

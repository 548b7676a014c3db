"""How instances in different processes find each other: small values by key, written once.

A transport puts its own address and gets those of its peers. This module does not know how values
travel between hosts; `cluster` carries them over its authenticated channel.
"""

from __future__ import annotations

import threading
import time
import urllib.parse
from pathlib import Path
from typing import Protocol

from janus_moe.errors import ExchangeClosed


class Rendezvous(Protocol):
    """Usable from any thread. Keys start with the name of the instance that puts them, e.g.
    `expert 1/..` where only one may; a second `put` of a key replaces the value."""

    def put(self, key: str, value: bytes) -> None:
        """Makes `value` known to all instances; does not wait for them."""
        ...

    def get(self, key: str, timeout_s: float) -> bytes:
        """The value of `key`, as soon as it is put.

        Raises TimeoutError naming the key after `timeout_s`, ExchangeClosed when the service stops.
        """
        ...


class MemoryRendezvous:
    """A `Rendezvous` among threads; also one process's copy of what all processes have put."""

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}
        self._changed = threading.Condition()
        self._closed = False

    def put(self, key: str, value: bytes) -> None:
        with self._changed:
            self._values[key] = value
            self._changed.notify_all()

    def get(self, key: str, timeout_s: float) -> bytes:
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while key not in self._values:
                if self._closed:
                    raise ExchangeClosed(f"the service stopped before any worker sent {key!r}")
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"no worker sent {key!r} within {timeout_s:g} s")
                self._changed.wait(left)
            return self._values[key]

    def close(self) -> None:
        """Ends every wait, now and later, with ExchangeClosed."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class NamespacedRendezvous:
    """A `Rendezvous` for one of several exchanges that share another: keys end with its name."""

    def __init__(self, shared: Rendezvous, name: str) -> None:
        self._shared = shared
        self._suffix = f"#{name}"

    def put(self, key: str, value: bytes) -> None:
        self._shared.put(key + self._suffix, value)

    def get(self, key: str, timeout_s: float) -> bytes:
        return self._shared.get(key + self._suffix, timeout_s)


class FolderRendezvous:
    """A `Rendezvous` among processes that share a folder, one file per key.

    For tests and benchmarks: any process that can write to the folder can take part.
    """

    def __init__(self, folder: Path, poll_s: float = 0.01) -> None:
        self._folder = folder
        self._poll_s = poll_s

    def put(self, key: str, value: bytes) -> None:
        path = self._path(key)
        part = path.with_name(f"{path.name}.{threading.get_ident()}.part")
        part.write_bytes(value)
        part.replace(path)  # so that no process reads half of it

    def get(self, key: str, timeout_s: float) -> bytes:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return self._path(key).read_bytes()
            except FileNotFoundError:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"no worker sent {key!r} within {timeout_s:g} s") from None
                time.sleep(self._poll_s)

    def _path(self, key: str) -> Path:
        return self._folder / urllib.parse.quote(key, safe="")

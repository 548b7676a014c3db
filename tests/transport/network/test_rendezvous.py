"""Claims about finding peers: a value reaches all that wait for it, and no wait is for ever."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from janus_moe.errors import ExchangeClosed
from janus_moe.transport.network.rendezvous import MemoryRendezvous


def test_a_value_reaches_those_who_wait_and_those_who_come_later() -> None:
    store = MemoryRendezvous()
    with ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(store.get, "expert 1/address", 20.0) for _ in range(2)]
        store.put("expert 0/address", b"other")
        store.put("expert 1/address", b"\x00one")
        assert [wait.result(20) for wait in waiting] == [b"\x00one"] * 2
    assert store.get("expert 1/address", 0.0) == b"\x00one"


def test_a_deadline_names_the_key() -> None:
    with pytest.raises(TimeoutError, match=r"expert 1.*0\.01 s"):
        MemoryRendezvous().get("expert 1", 0.01)


def test_closing_ends_waits_but_keeps_what_is_known() -> None:
    store = MemoryRendezvous()
    store.put("known", b"1")
    closer = threading.Timer(0.02, store.close)
    closer.start()
    with pytest.raises(ExchangeClosed, match="missing"):
        store.get("missing", 20.0)
    closer.join()
    assert store.get("known", 0.0) == b"1"

"""An expert instance that answers two exchanges: both end together, whichever fails."""

from __future__ import annotations

import queue
import threading
from typing import Any

import pytest

from janus_moe.errors import ExchangeClosed, ExchangeTimeout
from janus_moe.experts.loop import serve
from janus_moe.messages import Stop, ToWorker


class Port:
    """Woken, closed or broken from outside; never has work."""

    def __init__(self) -> None:
        self.news: queue.Queue[Exception | None] = queue.Queue()

    def accept(self) -> None:
        error = self.news.get(timeout=10)
        if error is not None:
            raise error

    def wake(self) -> None:
        self.news.put(None)

    def close(self) -> None:
        self.news.put(ExchangeClosed("closed"))


class Idle:
    """Stands for the instance, and for what prepares epochs."""

    def serve_once(self, port: Port) -> None:
        port.accept()

    def serve(self, inbox: queue.SimpleQueue[ToWorker]) -> None:
        assert isinstance(inbox.get(timeout=10), Stop)


def running(ports: list[Port], inbox: queue.SimpleQueue[ToWorker]) -> tuple[Any, list[Exception]]:
    errors: list[Exception] = []

    def live() -> None:
        try:
            serve(Idle(), Idle(), ports, inbox)  # type: ignore[arg-type]
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=live)
    thread.start()
    return thread, errors


def test_a_stop_ends_both() -> None:
    ports, inbox = [Port(), Port()], queue.SimpleQueue[ToWorker]()
    before = threading.active_count()
    thread, errors = running(ports, inbox)
    inbox.put(Stop())
    ports[0].wake()
    thread.join(10)
    assert not errors and threading.active_count() == before


@pytest.mark.parametrize("broken", [0, 1])
def test_what_ends_one_exchange_ends_the_instance(broken: int) -> None:
    ports, inbox = [Port(), Port()], queue.SimpleQueue[ToWorker]()
    before = threading.active_count()
    thread, errors = running(ports, inbox)
    late = ExchangeTimeout(peer="attention 0", stage="dispatch", step=3, layer=1, waited_s=2.0)
    ports[broken].news.put(late)
    thread.join(10)
    assert errors == [late] and threading.active_count() == before

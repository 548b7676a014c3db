"""Claims about who gets which control message, and that nothing of strangers reaches the engine."""

from __future__ import annotations

import pytest
import zmq

from janus_moe.cluster.message_router import MessageRouter
from janus_moe.errors import ServiceError
from janus_moe.messages import (
    AbortRequest,
    Failed,
    FromWorker,
    Hello,
    Message,
    Progress,
    Stop,
    StorePut,
    encode,
)
from janus_moe.spec import InstanceId

ATTENTION = InstanceId(pool="attention", number=4)
EXPERT = InstanceId(pool="expert", number=7)


class Service:
    """A router whose messages are kept: [(worker, message)] sent, heard, failed, foreign."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, Message]] = []
        self.heard: list[FromWorker] = []
        self.failed: list[tuple[str, Failed]] = []
        self.foreign: list[tuple[bytes, bytes]] = []
        self.unreachable: dict[bytes, int] = {}
        self.router = MessageRouter(
            self.post,
            {ATTENTION: "a", EXPERT: "e"},
            {"a": "a", "e": "e on host b"},
            lambda worker, message: self.failed.append((worker, message)),
            {b"host ": lambda identity, content: self.foreign.append((identity, content))},
        )
        self.router.on_message.append(self.heard.append)

    def post(self, identity: bytes, message: Message) -> None:
        if identity in self.unreachable:
            raise zmq.ZMQError(self.unreachable[identity])
        self.sent.append((identity, message))


@pytest.fixture
def service() -> Service:
    return Service()


def test_a_message_goes_to_the_worker_that_hosts_the_instance(service: Service) -> None:
    message = AbortRequest(instance=EXPERT, request_id="r", admission=1)
    service.router.send(message)
    assert service.sent == [(b"e", message)]


def test_a_worker_that_is_gone_gets_nothing(service: Service) -> None:
    """The runtime tells that it is gone; a request that was on its way there is admitted again."""
    service.unreachable[b"e"] = zmq.EHOSTUNREACH
    service.router.send(AbortRequest(instance=EXPERT, request_id="r", admission=1))
    service.router.remove("e")
    service.router.send(AbortRequest(instance=EXPERT, request_id="r", admission=1))
    assert not service.sent


def test_a_worker_that_cannot_be_reached_is_named_with_its_host(service: Service) -> None:
    service.unreachable[b"e"] = zmq.EAGAIN
    with pytest.raises(ServiceError, match="e on host b cannot be reached"):
        service.router.send(AbortRequest(instance=EXPERT, request_id="r", admission=1))


def test_what_a_removed_worker_says_is_not_believed(service: Service) -> None:
    service.router.remove("a")
    service.router.route(b"a", encode(Progress(instance=ATTENTION, stage="load")))
    assert not service.heard


def test_a_worker_that_comes_later_gets_what_the_members_of_living_generations_put(
    service: Service,
) -> None:
    for key in ("x#generation 1#micro-batch 0", "x#generation 10#micro-batch 0", "x"):
        service.router.route(b"a", encode(StorePut(key=key, value=b"1")))
    service.router.forget(1)
    late = InstanceId(pool="expert", number=8)
    service.router.add("late", "late", (late,))
    service.router.greet("late", Stop())
    service.router.send(AbortRequest(instance=late, request_id="r", admission=1))
    keys = [message.key for _, message in service.sent if isinstance(message, StorePut)]
    assert keys == ["x#generation 10#micro-batch 0", "x"]
    assert isinstance(service.sent[-1][1], AbortRequest)


def test_all_subscribers_get_every_message_in_their_order(service: Service) -> None:
    order: list[str] = []
    service.router.on_message[:] = [lambda m: order.append("first"), lambda m: order.append("next")]
    service.router.route(b"a", encode(Progress(instance=ATTENTION, stage="load")))
    assert order == ["first", "next"]


def test_messages_of_strangers_reach_nobody(service: Service) -> None:
    service.router.route(b"x", encode(Hello(name="x", pid=1, version="1")))
    service.router.route(b"\xff", b"")
    assert not (service.heard or service.failed or service.sent or service.foreign)


def test_messages_of_hosts_are_not_read_here(service: Service) -> None:
    service.router.route(b"host b 12", b"anything")
    assert service.foreign == [(b"host b 12", b"anything")]


def test_garbage_is_a_failure_of_its_worker(service: Service) -> None:
    service.router.route(b"a", b"\xc1")
    [(worker, failed)] = service.failed
    assert worker == "a" and "unreadable message" in failed.error
    assert not failed.caused_by_peer


def test_a_failure_comes_with_the_worker_that_had_it(service: Service) -> None:
    failed = Failed(name="attention 4", error="no", caused_by_peer=True)
    service.router.route(b"a", encode(failed))
    assert service.failed == [("a", failed)] and not service.heard


def test_values_reach_all_other_workers_whenever_they_are_set_up(service: Service) -> None:
    setup, early, late = Stop(), StorePut(key="k", value=b"1"), StorePut(key="l", value=b"2")
    service.router.route(b"a", encode(early))
    assert not service.sent, "a worker gets its setup first"
    service.router.greet("a", setup)
    service.router.greet("e", setup)
    service.sent.clear()
    service.router.route(b"a", encode(late))
    assert service.sent == [(b"e", late)]
    again = Service()
    again.router.route(b"a", encode(early))
    again.router.greet("e", setup)
    assert again.sent == [(b"e", setup), (b"e", early)]


def test_a_worker_that_is_gone_keeps_no_value_from_the_others(service: Service) -> None:
    for worker in ("a", "e"):
        service.router.greet(worker, Stop())
    service.sent.clear()
    service.unreachable[b"a"] = zmq.EHOSTUNREACH
    put = StorePut(key="k", value=b"v")
    service.router.route(b"x", encode(put))
    service.router.route(b"e", encode(put))
    assert not service.sent

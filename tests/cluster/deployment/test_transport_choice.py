"""Claims about the transport and the way of messages that a run gets, and how that is said."""

from __future__ import annotations

import pytest

from janus_moe.cluster.deployment.transport_choice import choose_exchange, choose_transport
from janus_moe.cluster.hosts.shares import HostShare, assign, parse_hosts, whole
from janus_moe.config import EngineConfig
from janus_moe.errors import ConfigError
from janus_moe.spec import PoolShape


def here(attention: int, expert: int) -> list[HostShare]:
    return [whole(PoolShape(attention=attention, expert=expert))]


def among(hosts: str, attention: int, expert: int) -> tuple[HostShare, ...]:
    return assign(PoolShape(attention=attention, expert=expert), parse_hosts(hosts))


def test_one_process_where_nothing_can_run_side_by_side() -> None:
    plain, cuda = EngineConfig(), EngineConfig(device="cuda")
    halves = EngineConfig(transport="auto", expert_instances=2, micro_batch_threshold=8)
    assert choose_transport(plain, here(1, 1)) == ("loopback", "transport loopback")
    assert choose_transport(plain, here(1, 2)) == ("shm", "transport shm")
    assert choose_transport(plain, here(2, 1)) == ("shm", "transport shm")
    assert choose_transport(halves, here(1, 1)) == ("shm", "transport shm")
    assert choose_transport(cuda, here(1, 4)) == ("loopback", "transport loopback")


def test_what_the_settings_say_is_not_said_again() -> None:
    assert choose_transport(EngineConfig(transport="gloo"), here(1, 1)) == ("gloo", None)
    hosts = among("local=1A,b=2E", 1, 2)
    assert choose_transport(EngineConfig(expert_instances=2), hosts) == ("gloo", None)
    given = EngineConfig(transport="gloo", exchange="2pc-relay")
    assert choose_exchange(given, "gloo", hosts) == ("2pc-relay", None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "cuda"}, "use --device cpu with --hosts"),
        ({"transport": "shm"}, "shm stays on one host, but --hosts names local, b; use .* gloo"),
    ],
)
def test_what_cannot_be_between_hosts_is_refused(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose_transport(EngineConfig(**settings), among("local,b", 1, 1))  # type: ignore[arg-type]


def test_messages_are_aggregated_only_where_a_host_has_two_instances() -> None:
    config = EngineConfig()
    assert choose_exchange(config, "gloo", among("a,b", 1, 1)) == ("1pc", "exchange 1pc")
    assert choose_exchange(config, "gloo", here(2, 2)) == ("1pc", "exchange 1pc")
    assert choose_exchange(config, "gloo", among("a=1A,b=2E", 1, 2)) == ("auto", None)
    assert choose_exchange(config, "shm", here(2, 2)) == ("auto", None)
    with pytest.raises(ConfigError, match=r"--exchange 1pc is about .* but the transport is shm"):
        choose_exchange(EngineConfig(exchange="1pc"), "shm", here(2, 2))

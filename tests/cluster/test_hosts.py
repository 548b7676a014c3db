"""Claims about which host runs what, how much memory each pool may take, and how to name hosts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus_moe.cluster.deployment.memory_budget import MemoryBudget
from janus_moe.cluster.hosts.addresses import Address, address_towards, require_own
from janus_moe.cluster.hosts.shares import (
    HostRequest,
    assign,
    first_membership,
    parse_hosts,
    shape_of,
)
from janus_moe.errors import ConfigError
from janus_moe.spec import PoolShape

SIZES = st.integers(1, 9)


@given(attention=SIZES, expert=SIZES, num_hosts=st.integers(1, 10))
def test_even_split_covers_all_and_separates_the_pools(
    attention: int, expert: int, num_hosts: int
) -> None:
    shape = PoolShape(attention=attention, expert=expert)
    requests = [HostRequest(f"h{i}") for i in range(num_hosts)]
    if num_hosts > attention + expert:
        with pytest.raises(ConfigError, match=f"{num_hosts} hosts.*{shape}"):
            assign(shape, requests)
        return
    shares = assign(shape, requests)
    instances = [instance for share in shares for instance in share.instances]
    assert len(set(instances)) == len(instances) == attention + expert
    membership = first_membership(shares, 0)
    attention_nodes, expert_nodes = membership.attention_hosts, membership.expert_hosts
    assert list(attention_nodes) == sorted(attention_nodes)
    assert list(expert_nodes) == sorted(expert_nodes)
    assert {*attention_nodes, *expert_nodes} == set(range(num_hosts)), "no host is idle"
    if num_hosts > 1:
        assert not {*attention_nodes} & {*expert_nodes}
        best = min(
            max(-(-attention // n), -(-expert // (num_hosts - n)))
            for n in range(1, num_hosts)
            if n <= attention and num_hosts - n <= expert
        )
        assert max(len(share.instances) for share in shares) == best


def test_counts_are_kept_in_order() -> None:
    requests = parse_hosts("local=1A, b=1A2E,c=3E")
    shape = shape_of(requests)
    assert shape == PoolShape(attention=2, expert=5)
    shares = assign(shape, requests)
    assert [str(share) for share in shares] == [
        "local (attention 0)",
        "b (attention 1, expert 0, expert 1)",
        "c (expert 2, expert 3, expert 4)",
    ]
    membership = first_membership(shares, 3)
    assert [str(instance) for instance in membership.instances] == [
        *("attention 0", "attention 1", "expert 0", "expert 1", "expert 2", "expert 3", "expert 4")
    ]
    assert membership.attention_hosts == (0, 1) and membership.expert_hosts == (1, 1, 2, 2, 2)
    assert (membership.generation, membership.placement_epoch) == (0, 3)
    assert shape_of(parse_hosts("a,b")) is None


@pytest.mark.parametrize(
    ("hosts", "message"),
    [
        ("a,a", "a twice"),
        ("a=1A,b", "none to b"),
        ("a=2,b=1E", "a=2 says no instances"),
        ("a=0A,b=1E", "a=0A says no instances"),
        ("a=1A,b=1A", "no host an expert"),
        ("a,,b", "no name"),
        ("a b", "no name"),
    ],
)
def test_bad_hosts_are_refused(hosts: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        shape_of(parse_hosts(hosts))


def test_counts_that_contradict_the_pools_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"adds up to 1A2E.*1A3E"):
        assign(PoolShape(attention=1, expert=3), parse_hosts("a=1A,b=2E"))


def test_a_pool_is_as_rich_as_its_poorest_host() -> None:
    shares = assign(PoolShape(attention=1, expert=3), parse_hosts("a=1A1E,b=2E"))
    budget = MemoryBudget(shares, (100, 120))
    assert budget.for_attention() == 100
    assert budget.for_experts() == 180  # b: 120 for 2 of 3
    after = budget.less_experts(90).less_attention(50)
    assert after.left == (20, 60)
    assert after.poorest[0].name == "a"
    assert MemoryBudget(shares[:1], (7,)).less_experts(3).left == (4,)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("10.0.0.1", "10.0.0.1", 29500),
        ("node-a:1", "node-a", 1),
        ("[::1]:7", "::1", 7),
        ("[::1]", "::1", 29500),
    ],
)
def test_addresses(text: str, host: str, port: int) -> None:
    address = Address.parse(text, "--join")
    assert (address.host, address.port) == (host, port)


@pytest.mark.parametrize("text", ["", ":1", "a:b", "a:70000", "::1"])
def test_bad_addresses_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--join"):
        Address.parse(text, "--join")


def test_own_addresses() -> None:
    assert address_towards(Address("127.0.0.1", 1), "--join") == "127.0.0.1"
    assert require_own("127.0.0.3", "--bind") == "127.0.0.3"
    with pytest.raises(ConfigError, match="no address of this host"):
        require_own("192.0.2.1", "--bind")
    with pytest.raises(ConfigError, match="everywhere"):
        require_own("0.0.0.0", "--bind")

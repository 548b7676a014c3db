"""What runs while an exchange is in flight: `dispatch` returns before any expert has a row."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tests.transport.network.local_network import LocalNetwork

from janus_moe.spec import EXCHANGE_PLANS, ExchangePlanName, InstanceId, Membership
from janus_moe.transport import AttentionPort, ExchangeLayout, WaitRule
from janus_moe.transport.network.exchange import NetworkExchange


@pytest.mark.parametrize("plan", EXCHANGE_PLANS)
def test_dispatch_waits_for_no_other_node(plan: ExchangePlanName) -> None:
    """On this network a send is over when its receive is posted, and no expert ever posts one."""
    layout = ExchangeLayout(
        membership=Membership.on_hosts((0, 0, 1, 1), (2, 2, 3)),
        hidden_size=4,
        dtype="float32",
        max_tokens=8,
        plan=plan,
    )
    network = LocalNetwork(7)
    ends = [
        NetworkExchange(layout, InstanceId(pool="attention", number=index), network.channel(index))
        for index in range(4)
    ]
    rule = WaitRule(timeout_s=10.0)

    def dispatch(port: AttentionPort) -> int:
        step = port.begin_step(3)
        return port.dispatch(0, torch.zeros(3, 4)).step - step

    with ThreadPoolExecutor(4) as threads:
        ports = [end.attention_port(index, rule) for index, end in enumerate(ends)]
        assert list(threads.map(dispatch, ports)) == [0] * 4
    for end in ends:
        end.close()

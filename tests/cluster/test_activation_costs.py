"""Claims about the costs of token-aware scheduling: measured once, the same for all, sensible."""

from __future__ import annotations

import msgspec
import numba
import pytest
import torch
from tests.server.fake_engine import tiny_spec

from janus_moe.cluster.activation_costs import activation_rule, measure, resolve_costs
from janus_moe.config import EngineConfig
from janus_moe.errors import ConfigError
from janus_moe.policy.activation import LayerCost


@pytest.mark.slow
def test_measuring_gives_costs_and_leaves_the_threads_as_they_were() -> None:
    """Not how large they are: other programs may run."""
    spec = tiny_spec(10, 10)
    large = msgspec.structs.replace(
        spec, hidden_size=128, moe=msgspec.structs.replace(spec.moe, intermediate_size=128)
    )
    numba.get_num_threads()  # its first call may change torch's number
    before = torch.get_num_threads(), numba.get_num_threads()
    cost = measure(large, 1)
    assert cost.expert_ns + cost.token_ns > 0
    assert (torch.get_num_threads(), numba.get_num_threads()) == before


def test_what_is_given_is_kept_and_the_rest_is_said() -> None:
    spec = tiny_spec(10, 10)
    half = EngineConfig(activation_policy="token-aware", activation_token_ns=77)
    with pytest.raises(ValueError, match="not resolved"):
        activation_rule(half)
    resolved, reason = resolve_costs(half, spec, 1)
    rule = activation_rule(resolved)
    assert isinstance(rule, LayerCost) and rule.token_ns == 77
    assert f"an activated expert costs {rule.expert_ns} ns, a token of one 77 ns" == reason
    assert resolve_costs(resolved, spec, 1) == (resolved, None)
    assert activation_rule(EngineConfig()) == "exact"


def test_costs_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="--activation-token-ns must be auto, or from 0"):
        EngineConfig(activation_token_ns=-1)
    cuda = EngineConfig(activation_policy="token-aware", device="cuda")
    with pytest.raises(ConfigError, match="give --activation-expert-ns"):
        resolve_costs(cuda, tiny_spec(10, 10), 1)

"""Tokens and log-probabilities have the same bits for any number of expert instances, any placement
and replicas, over a whole exchange with its scheduler. Every comparison is `==`."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from tests.attention.pools import RULE, Attention, Weights
from tests.checkpoints import make_checkpoint
from tests.experts.build import expert_instance

from janus_moe.model.checkpoint import Checkpoint
from janus_moe.model.expert_block import ExpertModel
from janus_moe.policy.placement import initial_placement
from janus_moe.spec import InstanceId, Membership, PoolShape
from janus_moe.transport.loopback import LoopbackExchange


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return Weights(make_checkpoint(tmp_path_factory.mktemp("model"), "qwen3_moe"))


def served(weights: Weights, num_instances: int, redundant: int, seed: int) -> list[Any]:
    """What three requests of one attention instance got: tokens and their log-probabilities."""
    spec, load = weights.spec, random.Random(seed)
    layers, experts = len(spec.moe_layer_ids), spec.moe.num_experts
    likely = [[load.random() for _ in range(experts)] for _ in range(layers)]
    placement = initial_placement(layers, experts, num_instances, redundant, likely)
    exchange = LoopbackExchange(Membership.first(PoolShape(attention=1, expert=num_instances)))
    checkpoint = Checkpoint.open(Path(weights.folder))
    for rank in range(num_instances):
        slots = [layer[rank] for layer in placement.slots]
        model = ExpertModel.load(spec, checkpoint, slots, "cpu")
        exchange.serve(rank, expert_instance(rank, model, placement).serve_once)
    attention = Attention(weights, ports=[exchange.attention_port(0, RULE)])
    attention.instance.connect(
        [InstanceId(pool="expert", number=n) for n in range(num_instances)],
        [exchange.attention_port(0, RULE)],
    )
    for number, length in enumerate((3, 20, 11)):
        prompt = [(5 * i + number) % 60 + 2 for i in range(length)]
        attention.add(f"request {number}", prompt, logprobs=4, max_tokens=12)
    attention.run()
    exchange.close()
    return [
        (one.request_id, one.position, one.token_ids, one.logprobs)
        for step in attention.steps
        for one in step.outputs
    ]


def test_any_expert_pool_gives_the_same_log_probabilities(weights: Weights) -> None:
    want = served(weights, 1, 0, seed=0)
    assert any(logprobs for *_, logprobs in want)
    for num_instances, redundant, seed in ((2, 0, 1), (2, 3, 2), (3, 0, 3), (3, 4, 4), (4, 2, 5)):
        assert served(weights, num_instances, redundant, seed) == want

"""One attention instance and its expert pool in this process, without a worker or an engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.experts.build import expert_instance

from janus_moe.attention.instance import AttentionInstance
from janus_moe.attention.runner import AttentionRunner
from janus_moe.attention.step_input import StepLimits
from janus_moe.messages import AddRequest, NewTokens, SamplingParams, StepDone
from janus_moe.model.attention_block import AttentionModel, KvCache
from janus_moe.model.checkpoint import Checkpoint
from janus_moe.model.config import read_spec
from janus_moe.model.expert_block import ExpertModel
from janus_moe.policy.paging import BlockManager
from janus_moe.policy.placement import initial_placement
from janus_moe.spec import InstanceId, Membership, PoolShape
from janus_moe.transport import AttentionPort, WaitRule
from janus_moe.transport.loopback import LoopbackExchange

EXPERT_INSTANCES, BLOCK_SIZE = 2, 4
EXPERT_IDS = tuple(InstanceId(pool="expert", number=n) for n in range(EXPERT_INSTANCES))
RULE = WaitRule(timeout_s=20.0)


class Weights:
    """A checkpoint loaded for both pools; shared by tests, which only read it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spec = read_spec(folder, "float32")
        checkpoint = Checkpoint.open(folder)
        self.attention = AttentionModel.load(self.spec, checkpoint, "cpu")
        layers, experts = len(self.spec.moe_layer_ids), self.spec.moe.num_experts
        self.placement = initial_placement(layers, experts, EXPERT_INSTANCES, 1)
        self.experts = [
            ExpertModel.load(self.spec, checkpoint, [layer[rank] for layer in slots], "cpu")
            for slots in [self.placement.slots]
            for rank in range(EXPERT_INSTANCES)
        ]

    def exchange(self, num_attention: int = 1) -> LoopbackExchange:
        """A new exchange whose experts serve."""
        exchange = LoopbackExchange(
            Membership.first(PoolShape(attention=num_attention, expert=EXPERT_INSTANCES))
        )
        for rank, model in enumerate(self.experts):
            exchange.serve(rank, expert_instance(rank, model, self.placement).serve_once)
        return exchange


class Attention:
    """An attention instance, and what its steps have reported.

    num_ports: exchanges, one for each micro-batch.
    wrap: stands between the instance and each of its first ports.
    """

    def __init__(
        self,
        weights: Weights,
        *,
        ports: Sequence[AttentionPort] | None = None,
        number: int = 0,
        num_blocks: int = 64,
        max_num_seqs: int = 8,
        max_num_batched_tokens: int = 64,
        micro_batch_threshold: int = 0,
        prefix_caching: bool = False,
        num_ports: int = 1,
        wrap: Callable[[AttentionPort], Any] = lambda port: port,
    ) -> None:
        self.weights = weights
        self.id = InstanceId(pool="attention", number=number)
        self.blocks = BlockManager(num_blocks, BLOCK_SIZE, enable_prefix_caching=prefix_caching)
        limits = StepLimits(
            max_num_seqs,
            max_num_batched_tokens,
            weights.spec.max_position,
            micro_batch_threshold,
        )
        cache = KvCache.allocate(weights.spec, num_blocks, BLOCK_SIZE, "cpu")
        runner = AttentionRunner(weights.attention, cache, limits)
        self.instance = AttentionInstance(self.id, runner, self.blocks, limits)
        self.num_ports = num_ports
        if ports is None:
            self.connect(wrap)
        else:
            self.instance.connect(EXPERT_IDS, ports)
        self.steps: list[StepDone] = []

    def connect(self, wrap: Callable[[AttentionPort], Any] = lambda port: port) -> None:
        """Computes its steps over new exchanges from now on."""
        exchanges = [self.weights.exchange() for _ in range(self.num_ports)]
        ports = [wrap(exchange.attention_port(0, RULE)) for exchange in exchanges]
        self.instance.connect(EXPERT_IDS, ports)

    def request(
        self,
        request_id: str,
        prompt_ids: Sequence[int],
        position: int = 0,
        admission: int = 1,
        **sampling: Any,
    ) -> AddRequest:
        """Greedy, without an end of sequence, unless `sampling` says otherwise."""
        params = {"temperature": 0.0, "max_tokens": 8, "ignore_eos": True, "seed": 3} | sampling
        return AddRequest(
            instance=self.id,
            request_id=request_id,
            admission=admission,
            prompt_ids=tuple(prompt_ids),
            sampling=SamplingParams(**params),
            eos_token_ids=self.weights.spec.eos_token_ids,
            position=position,
        )

    def add(self, request_id: str, prompt_ids: Sequence[int], **options: Any) -> None:
        self.instance.add(self.request(request_id, prompt_ids, **options))

    def step(self) -> StepDone:
        self.steps.append(self.instance.step())
        return self.steps[-1]

    def run(self) -> dict[str, list[int]]:
        """Steps until there is no work; all tokens that were ever produced, by request."""
        while self.instance.has_work:
            self.step()
        return tokens_of(self.steps)


def reports_of(steps: Sequence[StepDone], request_id: str) -> list[NewTokens]:
    """What steps have said of one request."""
    return [one for step in steps for one in step.outputs if one.request_id == request_id]


def tokens_of(steps: Sequence[StepDone]) -> dict[str, list[int]]:
    """The tokens that steps have produced, by request."""
    tokens: dict[str, list[int]] = {}
    for step in steps:
        for one in step.outputs:
            tokens.setdefault(one.request_id, []).extend(one.token_ids)
    return tokens

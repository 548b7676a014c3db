"""How long a lockstep step takes, as tables that compiled code can read.

The oracle says how long each part of a layer takes; this module asks it on a grid once per
deployment, because a day of simulated time has millions of steps. Between grid points every part is
linear. How parts make a step is `planner.latency.step`; `step_seconds` repeats it for tables, and a
test compares the two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from janus_moe.compiled import compiled
from janus_moe.errors import ConfigError
from janus_moe.planner.latency import Oracle
from janus_moe.planner.latency.arrays import Array
from janus_moe.planner.latency.links import Gating
from janus_moe.planner.latency.prompts import pair_cost
from janus_moe.spec import ExchangePlanName

MaxActivatedSource = Callable[[float], float]
"""Tokens of a micro-batch, of all attention instances -> activated experts of the busiest expert
instance, a mean over layers."""


class StepTable(NamedTuple):
    """Seconds of the parts of one layer and micro-batch.

    tokens: [b] grid of tokens on one attention instance.
    kv: [c] grid of KV positions read there.
    attention: [b, c].
    shared, dense: [b] shared expert; MLP of a layer without experts.
    head: [b] logits of b sequences.
    batch: [B] grid of tokens of all attention instances.
    experts, exchange: [B] the busiest expert instance; both directions together.
    monolithic: attention and experts take turns on the same devices.
    step_s, token_s: of the host, once a step and once per token.
    pair_cost: KV positions whose reading takes as long as the arithmetic of one pair of a prompt's
        query and a key.
    """

    tokens: Array
    kv: Array
    attention: Array
    shared: Array
    dense: Array
    head: Array
    batch: Array
    experts: Array
    exchange: Array
    num_moe_layers: float
    num_dense_layers: float
    micro_batches: float
    monolithic: bool
    step_s: float
    token_s: float
    pair_cost: float


class PoolSize(NamedTuple):
    """The instances of a deployment.

    num_attention, num_expert: instances; a monolithic deployment has num_expert = 0.
    attention_tp: GPUs of one of its attention instances, which share the heads.
    """

    num_attention: int
    num_expert: int
    attention_tp: int = 1

    @property
    def num_attention_gpus(self) -> int:
        return self.num_attention * self.attention_tp

    @property
    def num_gpus(self) -> int:
        return self.num_attention_gpus + self.num_expert

    @property
    def monolithic(self) -> bool:
        return self.num_expert == 0

    def __str__(self) -> str:
        if self.monolithic:
            return f"EP{self.num_gpus}" + (
                f"TP{self.attention_tp}" if self.attention_tp > 1 else ""
            )
        return f"{self.num_attention}A{self.num_expert}E"


class AttentionTable(NamedTuple):
    """The part of a table that does not depend on the sizes of the pools; meanings as there."""

    tokens: Array
    kv: Array
    attention: Array
    shared: Array
    dense: Array
    head: Array
    pair_cost: float


def tabulate_attention(
    oracle: Oracle, max_tokens: int, max_kv_tokens: int, tp: int = 1
) -> AttentionTable:
    """The attention side of steps on a grid; beyond it the last segment goes on.

    max_tokens, max_kv_tokens: of one attention instance of `tp` GPUs, per step and in its cache.
    """
    if max_tokens < 1 or max_kv_tokens < 1:
        raise ConfigError(f"need a token and a KV position, got {max_tokens} and {max_kv_tokens}")
    tokens = _grid(1, max(max_tokens, 2), 1.15)
    kv = np.concatenate(([0.0], _grid(16, max(max_kv_tokens, 32), 1.2)))
    each = oracle.attention_layer_s(tokens[:, None], kv[None, :] / tokens[:, None], tp)
    over, share = oracle.overheads, tokens / tp
    each = each + over.attention_layer_s + over.attention_token_s * share[:, None]
    if tp > 1:
        each = each + oracle.all_reduce_s(tokens[:, None], tp)
    return AttentionTable(
        tokens=tokens,
        kv=kv,
        attention=each,
        shared=oracle.shared_expert_s(share),
        dense=oracle.dense_layer_s(share),
        head=oracle.lm_head_s(tokens, tp),
        pair_cost=float(pair_cost(oracle, tp)),
    )


def tabulate(
    oracle: Oracle,
    size: PoolSize,
    max_activated: MaxActivatedSource,
    side: AttentionTable,
    micro_batches: int = 1,
    slots: int | None = None,
    plan: ExchangePlanName = "2pc-sharded",
    gating: Gating = "egate",
) -> StepTable:
    """The steps of a deployment of this size.

    slots: per layer and expert instance; None means no replicas.
    plan, gating: of pools.
    """
    model = oracle.model
    batch = _grid(1, float(side.tokens[-1]) * size.num_attention, 1.15)
    activated = np.array([max_activated(rows) for rows in batch])
    if size.monolithic:
        load = oracle.monolithic_load(batch, 0.0, size.num_gpus, activated)
    else:
        load = oracle.pools_load(batch, 0.0, *size[:2], activated, plan=plan, gating=gating)
    held = model.moe.num_experts / load.num_expert if slots is None else slots
    pairs = batch * model.moe.router.top_k / load.num_expert
    rows = batch if load.rows is None else load.rows
    experts = oracle.moe_layer_s(activated, pairs, rows, held) + oracle.overheads.expert_layer_s
    return StepTable(
        tokens=side.tokens,
        kv=side.kv,
        attention=side.attention,
        shared=side.shared,
        dense=side.dense,
        head=side.head,
        batch=batch,
        experts=experts,
        exchange=np.zeros(len(batch)) + load.dispatch_s + load.combine_s,
        num_moe_layers=float(model.num_moe_layers),
        num_dense_layers=float(model.num_dense_layers),
        micro_batches=float(micro_batches),
        monolithic=size.monolithic,
        step_s=float(oracle.overheads.step_s),
        token_s=float(oracle.overheads.token_s),
        pair_cost=side.pair_cost,
    )


def _grid(first: float, last: float, ratio: float) -> Array:
    """Whole numbers from `first` to `last`, each about `ratio` times the one before."""
    count = int(np.ceil(np.log(last / first) / np.log(ratio))) + 1
    return np.unique(np.rint(np.geomspace(first, last, max(count, 2))))


@compiled
def _place(grid, x):  # type: ignore[no-untyped-def]
    """(index, share) with x = grid[index] * (1 - share) + grid[index + 1] * share; not below 0."""
    low, high = 0, len(grid) - 1
    while high - low > 1:
        middle = (low + high) // 2
        if grid[middle] <= x:
            low = middle
        else:
            high = middle
    return low, max(0.0, (x - grid[low]) / (grid[low + 1] - grid[low]))


@compiled
def _line(values, index, share):  # type: ignore[no-untyped-def]
    return values[index] * (1.0 - share) + values[index + 1] * share


@compiled
def _attention(table, tokens, kv):  # type: ignore[no-untyped-def]
    """One layer's attention of an instance, for all that it has to do in the step."""
    b, share_b = _place(table.tokens, tokens / table.micro_batches)
    c, share_c = _place(table.kv, kv / table.micro_batches)
    low = _line(table.attention[b], c, share_c)
    high = _line(table.attention[b + 1], c, share_c)
    return low * (1.0 - share_b) + high * share_b


@compiled
def _step(table, attention, most, logits, total):  # type: ignore[no-untyped-def]
    """A step from the parts of its busiest instances.

    attention: the slowest instance's.
    most, logits: largest on an instance.
    total: tokens.
    """
    parts = table.micro_batches
    b, share = _place(table.tokens, most / parts)
    shared, dense = _line(table.shared, b, share), _line(table.dense, b, share)
    b, share = _place(table.tokens, logits / parts)
    head = _line(table.head, b, share) if logits > 0 else 0.0
    b, share = _place(table.batch, total / parts)
    experts, exchange = _line(table.experts, b, share), _line(table.exchange, b, share)
    if table.monolithic:
        busiest = attention + shared + experts
        bound = busiest + exchange
    else:
        busiest = max(attention + shared, experts)
        bound = attention + max(shared, exchange + experts)
    layer = max(parts * busiest, bound)
    dense_layers = table.num_dense_layers * parts * (attention + dense)
    host = table.step_s + table.token_s * total
    return table.num_moe_layers * layer + dense_layers + parts * head + host


@compiled
def step_seconds(table, instances):  # type: ignore[no-untyped-def]
    """A step of what the instances (`state.INSTANCE`) have planned; 0 without tokens.

    The slowest instance sets the pace of a layer, and the experts see all tokens.
    """
    attention, most, logits, total = 0.0, 0.0, 0.0, 0.0
    for i in range(len(instances)):
        here = instances[i]
        if here.planned_tokens == 0:
            continue
        attention = max(attention, _attention(table, here.planned_tokens, here.planned_kv))
        most = max(most, here.planned_tokens)
        logits = max(logits, here.planned_samples)
        total += here.planned_tokens
    return _step(table, attention, most, logits, total) if total > 0 else 0.0


@compiled
def busiest_step_seconds(table, tokens, kv, logits, total):  # type: ignore[no-untyped-def]
    """A step whose busiest instance has these tokens, KV positions and logits, of `total` tokens
    on all instances."""
    return _step(table, _attention(table, tokens, kv), tokens, logits, total)

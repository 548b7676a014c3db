"""Both halves in one process without a transport: what the pools must agree with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from janus_moe.model.attention_block import AttentionModel, KvCache, StepInput
from janus_moe.model.expert_block import ExpertModel


@torch.inference_mode()
def forward(
    model: AttentionModel, experts: Sequence[ExpertModel], step: StepInput, cache: KvCache
) -> Tensor:
    """Hidden states after the last layer, [tokens, hidden]; `model.logits` takes them.

    experts: together they hold every logical expert; of several replicas the first computes.
    """
    hidden = model.embed(step)
    for layer, kind in enumerate(model.spec.layers):
        hidden, normed = model.attention(layer, hidden, step, cache)
        if kind.mlp == "moe":
            hidden = hidden + moe(model, experts, layer, normed)
        else:
            hidden = hidden + model.dense(layer, normed)
    return hidden


def moe(
    model: AttentionModel, experts: Sequence[ExpertModel], layer: int, normed: Tensor
) -> Tensor:
    """Routed plus shared experts of one layer, [tokens, hidden]."""
    ids, weights = experts[0].route(layer, normed)
    tables = _slot_tables(experts, layer, ids.device)
    partial_sums = [
        expert.compute(layer, normed, table[ids.long()], weights, torch.float64)
        for expert, table in zip(experts, tables, strict=True)
    ]
    routed = torch.stack(partial_sums).sum(dim=0).float().to(normed.dtype)
    shared = model.shared(layer, normed)
    return routed if shared is None else routed + shared


def _slot_tables(experts: Sequence[ExpertModel], layer: int, device: torch.device) -> list[Tensor]:
    """Per instance [logical experts] int32: the slot that computes the expert there, or -1."""
    num_experts = experts[0].spec.moe.num_experts
    tables = []
    taken: set[int] = set()
    for instance in experts:
        table = [-1] * num_experts
        for slot, expert in enumerate(instance.layers[layer].slots):
            if expert not in taken:
                table[expert] = slot
                taken.add(expert)
        tables.append(torch.tensor(table, dtype=torch.int32, device=device))
    assert len(taken) == num_experts, f"layer {layer} lacks experts"
    return tables

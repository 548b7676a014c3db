"""Claim: routing follows its definition for every combination of options, row by row."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from janus_moe.kernels.route import route, route_reference, select
from janus_moe.spec import RouterSpec

EXPERTS_PER_GROUP = 3


@st.composite
def routers(draw: st.DrawFn) -> RouterSpec:
    groups = draw(st.integers(1, 4))
    top_groups = draw(st.integers(1, groups))
    score: Literal["max", "top2_sum"] = draw(st.sampled_from(["max", "top2_sum"]))
    scoring: Literal["softmax", "sigmoid"] = draw(st.sampled_from(["softmax", "sigmoid"]))
    return RouterSpec(
        top_k=draw(st.integers(1, top_groups * EXPERTS_PER_GROUP)),
        scoring=scoring,
        normalize=draw(st.booleans()),
        scaling_factor=draw(st.sampled_from([1.0, 2.5])),
        num_groups=groups,
        top_groups=top_groups,
        group_score=score,
        correction_bias=draw(st.booleans()),
    )


def definition(logits: list[float], bias: list[float], spec: RouterSpec) -> dict[int, float]:
    """Expert -> weight of one token, in plain Python."""
    if spec.scoring == "softmax":
        total = sum(math.exp(logit) for logit in logits)
        scores = [math.exp(logit) / total for logit in logits]
    else:
        scores = [1 / (1 + math.exp(-logit)) for logit in logits]
    choice = [score + b for score, b in zip(scores, bias, strict=True)]
    size = len(logits) // spec.num_groups
    groups = [range(g * size, (g + 1) * size) for g in range(spec.num_groups)]
    best = 1 if spec.group_score == "max" else 2
    groups.sort(key=lambda group: -sum(sorted((choice[e] for e in group), reverse=True)[:best]))
    eligible = [expert for group in groups[: spec.top_groups] for expert in group]
    chosen = sorted(eligible, key=lambda expert: -choice[expert])[: spec.top_k]
    divisor = sum(scores[expert] for expert in chosen) if spec.normalize else 1.0
    return {expert: scores[expert] / divisor * spec.scaling_factor for expert in chosen}


@settings(deadline=None)
@given(spec=routers(), seed=st.integers(0, 2**16), tokens=st.integers(0, 5))
def test_select_follows_the_definition(spec: RouterSpec, seed: int, tokens: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    experts = spec.num_groups * EXPERTS_PER_GROUP
    logits = torch.randn(tokens, experts, generator=generator)
    bias = torch.randn(experts, generator=generator) if spec.correction_bias else None
    gate = torch.eye(experts)  # whose logits are the hidden states
    for ids, weights in (select(logits, bias, spec), route(logits, gate, bias, spec)):
        check_choice(ids, weights, logits, bias, spec)


def check_choice(
    ids: Tensor, weights: Tensor, logits: Tensor, bias: Tensor | None, spec: RouterSpec
) -> None:
    tokens, experts = logits.shape
    assert (ids.dtype, weights.dtype) == (torch.int32, torch.float32)
    assert ids.shape == weights.shape == (tokens, spec.top_k)
    values = [0.0] * experts if bias is None else bias.tolist()
    for row, chosen, factors in zip(logits.tolist(), ids.tolist(), weights.tolist(), strict=True):
        expected = definition(row, values, spec)
        assert dict(zip(chosen, factors, strict=True)) == pytest.approx(expected, rel=1e-5)


OPTIONS: list[dict[str, Any]] = [
    {"scoring": "softmax", "normalize": True},
    {"scoring": "softmax", "normalize": False},
    {"scoring": "sigmoid", "normalize": True, "num_groups": 4, "top_groups": 2,
     "group_score": "top2_sum", "correction_bias": True},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS)
def test_equal_rows_are_routed_equally_in_any_batch(options: dict[str, Any]) -> None:
    spec = RouterSpec(top_k=3, **options)
    row = torch.tensor([1.0, 2.0, 2.0, 2.0, 2.0, 0.0, 2.0, 2.0])
    bias = torch.zeros(8) if spec.correction_bias else None
    gate = torch.eye(8)
    choices: list[Callable[[Tensor], tuple[Tensor, Tensor]]] = [
        lambda rows: select(rows, bias, spec),
        lambda rows: route(rows, gate, bias, spec),
    ]
    for choose in choices:
        alone = choose(row.view(1, -1))
        for tokens in (2, 7, 65):
            ids, weights = choose(row.expand(tokens, -1).contiguous())
            assert torch.equal(ids, alone[0].expand(tokens, -1))
            assert torch.equal(weights, alone[1].expand(tokens, -1))
            assert all(len(set(chosen)) == spec.top_k for chosen in ids.tolist())


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("tokens", [1, 16, 300])
def test_fused_vs_reference(tokens: int, options: dict[str, Any]) -> None:
    spec = RouterSpec(top_k=5, **options)
    hidden, gate = torch.randn(tokens, 100), torch.randn(64, 100)
    bias = torch.rand(64) if spec.correction_bias else None
    ids, weights = route(hidden, gate, bias, spec)
    want_ids, want_weights = route_reference(hidden, gate, bias, spec)
    assert torch.equal(ids, want_ids)
    torch.testing.assert_close(weights, want_weights, rtol=1e-5, atol=1e-6)


def test_logits_run_in_the_gates_dtype() -> None:
    """A float32 gate over bfloat16 activations tells apart what bfloat16 logits would not."""
    hidden = torch.ones(1, 2, dtype=torch.bfloat16)
    gate = torch.tensor([[1.0, 0.0], [1.0, 1e-4]])
    spec = RouterSpec(top_k=1, scoring="softmax", normalize=False, logits_dtype="float32")
    assert chosen(hidden, gate, spec) == 1


def chosen(hidden: Tensor, gate: Tensor, spec: RouterSpec) -> int:
    return int(route(hidden, gate, None, spec)[0])


@pytest.mark.parametrize("logit", [-200.0, 200.0])
def test_extreme_logits_stay_finite(logit: float) -> None:
    for options in OPTIONS:
        bias = torch.zeros(8) if options.get("correction_bias") else None
        spec, logits = RouterSpec(top_k=2, **options), torch.full((2, 8), logit)
        for ids, weights in (select(logits, bias, spec), route(logits, torch.eye(8), bias, spec)):
            assert torch.isfinite(weights).all()
            assert int(ids.min()) >= 0 and int(ids.max()) < 8

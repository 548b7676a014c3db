"""Claims about choosing tokens: each parameter does what its name says, row by row."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_moe.attention.sampler import SamplingRow, choose_tokens, uniform
from janus_moe.messages import SamplingParams

VOCABULARY = 12


def row(
    seed: int = 0, ids: tuple[int, ...] = (1, 2), prompt_len: int = 2, **params: Any
) -> SamplingRow:
    forbidden = params.pop("forbidden_ids", ())
    return SamplingRow(SamplingParams(**params), list(ids), prompt_len, seed, forbidden)


def logits(*values: float) -> torch.Tensor:
    padded = [*values, *[-5.0] * (VOCABULARY - len(values))]
    return torch.tensor([padded])


def draw(values: torch.Tensor, num: int = 400, **params: Any) -> Counter[int]:
    """How often each token comes up over `num` seeds."""
    rows = [row(seed=seed, **params) for seed in range(num)]
    return Counter(choose_tokens(values.repeat(num, 1), rows))


def test_temperature_zero_is_greedy() -> None:
    assert choose_tokens(logits(1, 3, 2), [row(temperature=0)]) == [1]


def test_frequencies_follow_the_softmax() -> None:
    values = logits(0.0, 1.0, 2.0)
    counts = draw(values, num=3000)
    expected = torch.softmax(values[0], -1)
    for token in range(3):
        assert counts[token] / 3000 == pytest.approx(float(expected[token]), abs=0.03)


def test_low_temperature_sharpens() -> None:
    assert draw(logits(0.0, 1.0, 2.0), temperature=0.05) == {2: 400}


@pytest.mark.parametrize(
    ("params", "allowed"),
    [
        ({"top_k": 2}, {2, 1}),
        ({"top_k": 1}, {2}),
        ({"top_p": 0.5}, {2}),
        ({"top_p": 0.8}, {2, 1}),
        ({"min_p": 0.3}, {2, 1}),
        ({"min_p": 0.9}, {2}),
        ({"top_k": 3, "top_p": 0.95}, {2, 1, 0}),
    ],
)
def test_truncation_keeps_only_the_likely(params: dict[str, Any], allowed: set[int]) -> None:
    assert set(draw(logits(0.0, 1.0, 2.0), **params)) == allowed


def test_logit_bias_and_forbidden_ids() -> None:
    values = logits(1, 3, 2)
    assert choose_tokens(values, [row(temperature=0, logit_bias={5: 100.0})]) == [5]
    assert choose_tokens(values, [row(temperature=0, forbidden_ids=(1,))]) == [2]
    assert choose_tokens(values, [row(temperature=0)]) == [1], "the logits are left unchanged"


def test_repetition_penalty_counts_prompt_and_output() -> None:
    assert choose_tokens(logits(1, 3, 2), [row(ids=(1,), temperature=0, repetition_penalty=2)]) == [
        2
    ]


def test_presence_and_frequency_count_output_only() -> None:
    values = logits(1, 3, 2.5)
    in_prompt = row(ids=(1, 1), prompt_len=2, temperature=0, presence_penalty=1.0)
    produced = row(ids=(0, 1), prompt_len=1, temperature=0, presence_penalty=1.0)
    once = row(ids=(0, 1), prompt_len=1, temperature=0, frequency_penalty=0.3)
    twice = row(ids=(0, 1, 1), prompt_len=1, temperature=0, frequency_penalty=0.3)
    chosen = [choose_tokens(values, [r])[0] for r in (in_prompt, produced, once, twice)]
    assert chosen == [1, 2, 1, 2]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**63), position=st.integers(0, 10**6))
def test_uniform_is_a_pure_function_into_the_unit_interval(seed: int, position: int) -> None:
    assert 0 <= uniform(seed, position) < 1
    assert uniform(seed, position) == uniform(seed, position)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_row_does_not_depend_on_its_batch(data: st.DataObject) -> None:
    """Seeded sampling gives the same token alone and beside any other rows."""
    values = torch.randn(6, VOCABULARY, generator=torch.Generator().manual_seed(3))
    rows = [
        row(
            seed=data.draw(st.integers(0, 2**32)),
            temperature=data.draw(st.sampled_from([0.0, 0.7, 1.5])),
            top_k=data.draw(st.sampled_from([0, 3])),
            top_p=data.draw(st.sampled_from([1.0, 0.8])),
            presence_penalty=data.draw(st.sampled_from([0.0, 0.5])),
        )
        for _ in range(6)
    ]
    together = choose_tokens(values, rows)
    assert together == [choose_tokens(values[i : i + 1], [rows[i]])[0] for i in range(6)]

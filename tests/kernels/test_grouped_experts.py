"""Grouped experts: the streaming kernel against the reference."""

from concurrent.futures import ThreadPoolExecutor

import numba
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_moe.kernels.grouped_experts import grouped_experts, grouped_experts_reference

Case = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def assert_near(result: torch.Tensor, want: torch.Tensor) -> None:
    """Sums of up to 1024 float32 products in different orders."""
    torch.testing.assert_close(result, want, rtol=1e-4, atol=2e-5)


def make_case(
    tokens: int,
    size: int = 40,
    width: int = 24,
    slots: int = 6,
    top_k: int = 3,
    *,
    dtype: torch.dtype = torch.float32,
    local: float = 0.7,
    seed: int = 0,
) -> Case:
    """Random arguments; each choice is local with probability `local`, slots may repeat."""
    generator = torch.Generator().manual_seed(seed)
    gate_up = torch.randn(slots, 2 * width, size, generator=generator) / size**0.5
    down = torch.randn(slots, size, width, generator=generator) / width**0.5
    slot_ids = torch.randint(0, slots, (tokens, top_k), generator=generator, dtype=torch.int32)
    slot_ids[torch.rand(tokens, top_k, generator=generator) >= local] = -1
    return (
        torch.randn(tokens, size, generator=generator).to(dtype),
        gate_up.to(dtype),
        down.to(dtype),
        slot_ids,
        torch.rand(tokens, top_k, generator=generator),
    )


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(0, 30),
    size=st.sampled_from([1, 7, 16, 40, 65]),
    width=st.sampled_from([1, 7, 24, 32]),
    slots=st.integers(1, 9),
    top_k=st.integers(1, 4),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    local=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 1000),
)
def test_grouped_experts_vs_reference(
    tokens: int,
    size: int,
    width: int,
    slots: int,
    top_k: int,
    dtype: torch.dtype,
    local: float,
    seed: int,
) -> None:
    case = make_case(tokens, size, width, slots, top_k, dtype=dtype, local=local, seed=seed)
    want = grouped_experts_reference(*case)
    assert_near(grouped_experts(*case), want)
    assert grouped_experts(*case).dtype == torch.float32
    wide = grouped_experts(*case, sums=torch.float64)
    assert torch.equal(wide.float(), grouped_experts(*case))


def test_grouped_experts_matches_a_sum_written_out() -> None:
    hidden, gate_up, down, slot_ids, weights = make_case(3, 16, 8, 4, 2, local=1.0)
    want = torch.zeros(3, 16)
    for token in range(3):
        for choice in range(2):
            slot = int(slot_ids[token, choice])
            gate, up = (gate_up[slot] @ hidden[token]).chunk(2)
            expert = down[slot] @ (torch.sigmoid(gate) * gate * up)
            want[token] += weights[token, choice] * expert
    assert_near(grouped_experts(hidden, gate_up, down, slot_ids, weights), want)


def test_grouped_experts_large_shape_vs_reference() -> None:
    case = make_case(9, 1024, 384, 8, 4)
    assert_near(grouped_experts(*case), grouped_experts_reference(*case))


def test_tokens_without_a_local_expert_get_zeros() -> None:
    hidden, gate_up, down, slot_ids, weights = make_case(5)
    slot_ids[2] = -1
    assert not grouped_experts(hidden, gate_up, down, slot_ids, weights)[2].any()
    slot_ids.fill_(-1)
    assert not grouped_experts(hidden, gate_up, down, slot_ids, weights).any()


@pytest.mark.parametrize("gate", [-1e4, -90.0, 90.0, 1e4])
def test_silu_saturates_without_nan(gate: float) -> None:
    hidden, gate_up, down, slot_ids, weights = make_case(2, 16, 8, 2, 1, local=1.0)
    hidden.fill_(1.0)
    gate_up[:, :8] = gate / 16
    case = (hidden, gate_up, down, slot_ids, weights)
    assert_near(grouped_experts(*case), grouped_experts_reference(*case))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_result_is_the_same_bits_for_any_number_of_threads(dtype: torch.dtype) -> None:
    case = make_case(64, 136, 68, 5, 3, dtype=dtype)
    available = numba.get_num_threads()
    results = []
    for threads in {1, available}:
        numba.set_num_threads(threads)
        results.append(grouped_experts(*case))
    numba.set_num_threads(available)
    assert all(torch.equal(results[0], result) for result in results)


def test_result_of_a_token_is_the_same_bits_in_any_batch() -> None:
    hidden, gate_up, down, slot_ids, weights = make_case(23, 72, 44, 5, 3)
    whole = grouped_experts(hidden, gate_up, down, slot_ids, weights)
    for token in (0, 7, 22):
        one = slice(token, token + 1)
        alone = grouped_experts(hidden[one], gate_up, down, slot_ids[one], weights[one])
        assert torch.equal(alone[0], whole[token])


def test_concurrent_calls_from_several_threads() -> None:
    cases = [make_case(8, seed=seed) for seed in range(4)]
    want = [grouped_experts(*case) for case in cases]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            results = list(pool.map(lambda case: grouped_experts(*case), cases))
            assert all(torch.equal(a, b) for a, b in zip(results, want, strict=True))


def test_sums_do_not_depend_on_slots_nor_on_how_many_instances_share_them() -> None:
    hidden, gate_up, down, slot_ids, weights = make_case(300, slots=8, top_k=6, local=1.0)
    slot_ids = torch.rand(300, 8).argsort(dim=1)[:, :6].int()
    want = grouped_experts(hidden, gate_up, down, slot_ids, weights)
    order = torch.randperm(8)
    total = torch.zeros(hidden.shape, dtype=torch.float64)
    for part in torch.split(order, [3, 1, 4]):
        place = torch.full((8,), -1, dtype=torch.int32)
        place[part] = torch.arange(len(part), dtype=torch.int32)
        own = place[slot_ids.long()]
        total += grouped_experts(
            hidden, gate_up[part], down[part], own, weights, sums=torch.float64
        )
    assert torch.equal(total.float(), want)


def test_arguments_outside_the_contract_raise() -> None:
    hidden, gate_up, down, slot_ids, weights = make_case(4)
    with pytest.raises(ValueError, match="experts do not fit"):
        grouped_experts(hidden, gate_up[:, :, :-1], down, slot_ids, weights)
    with pytest.raises(ValueError, match="routing does not fit"):
        grouped_experts(hidden, gate_up, down, slot_ids[:-1], weights)
    with pytest.raises(ValueError, match="unsupported dtypes"):
        grouped_experts(hidden.double(), gate_up, down, slot_ids, weights)
    with pytest.raises(ValueError, match="contiguous"):
        grouped_experts(hidden, gate_up[:, ::1].mT.contiguous().mT, down, slot_ids, weights)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_grouped_experts_on_cuda_vs_cpu() -> None:
    case = make_case(12)
    result = grouped_experts(*(tensor.cuda() for tensor in case))
    torch.testing.assert_close(result.cpu(), grouped_experts(*case), rtol=1e-3, atol=1e-3)

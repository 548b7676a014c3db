"""Linear: the streaming kernel against torch."""

import numba
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_moe.kernels.linear import linear, linear_reference
from janus_moe.kernels.linear.dispatch import streams
from janus_moe.kernels.linear.streaming import linear_streaming


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(0, 20),
    size=st.sampled_from([1, 7, 16, 40, 65]),
    rows=st.integers(1, 70),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    bias=st.sampled_from([None, "bias"]),
)
def test_linear_vs_reference(
    tokens: int, size: int, rows: int, dtype: torch.dtype, bias: str | None
) -> None:
    torch.manual_seed(tokens)
    x, weight = torch.randn(tokens, size).to(dtype), torch.randn(rows, size).to(dtype)
    offset = torch.randn(rows).to(dtype) if bias else None
    want = linear_reference(x.float(), weight.float(), None if offset is None else offset.float())
    tolerance = 1e-5 if dtype == torch.float32 else 8e-3  # float32 sums, one rounding at the end
    for result in (linear(x, weight, offset), linear_streaming(x, weight, offset)):
        assert result.dtype == dtype
        torch.testing.assert_close(result.float(), want, rtol=tolerance, atol=tolerance)


def test_linear_is_the_same_bits_for_any_batch_and_number_of_threads() -> None:
    x, weight = torch.randn(9, 264), torch.randn(301, 264)
    available = numba.get_num_threads()
    whole = linear_streaming(x, weight, None)
    numba.set_num_threads(1)
    alone = torch.cat([linear_streaming(x[t : t + 1], weight, None) for t in range(9)])
    numba.set_num_threads(available)
    assert torch.equal(whole, alone)


def test_linear_takes_weights_that_need_a_gradient_and_strided_inputs() -> None:
    weight = torch.nn.Parameter(torch.randn(6, 10))
    x = torch.randn(3, 20)[:, ::2]
    with torch.no_grad():
        torch.testing.assert_close(linear(x, weight), linear_reference(x, weight))


def test_streaming_rule_looks_at_tokens_only_where_bfloat16_is_multiplied() -> None:
    for tokens in (1, 64, 4096):
        assert streams(tokens, torch.float32, native_bfloat16=True)
        assert streams(tokens, torch.bfloat16, native_bfloat16=False)
    assert streams(8, torch.bfloat16, native_bfloat16=True)
    assert not streams(9, torch.bfloat16, native_bfloat16=True)
    assert not streams(0, torch.float32, native_bfloat16=False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_linear_on_cuda_vs_cpu() -> None:
    x, weight = torch.randn(3, 20), torch.randn(5, 20)
    torch.testing.assert_close(
        linear(x.cuda(), weight.cuda()).cpu(), linear(x, weight), rtol=1e-3, atol=1e-3
    )

"""Root-mean-square normalisation: the streaming kernel against torch."""

import pytest
import torch

from janus_moe.kernels.rms_norm import rms_norm, rms_norm_reference


@pytest.mark.parametrize("shape", [(0, 8), (1, 1), (3, 37), (17, 128)])
def test_rms_norm_vs_reference(shape: tuple[int, int]) -> None:
    x, weight = torch.randn(shape) * 3, torch.rand(shape[1])
    torch.testing.assert_close(rms_norm(x, weight, 1e-6), rms_norm_reference(x, weight, 1e-6))


def test_a_row_alone_gets_the_same_bits_as_in_a_batch() -> None:
    x, weight = torch.randn(9, 50), torch.rand(50)
    whole = rms_norm(x, weight, 1e-6)
    for row in range(9):
        assert torch.equal(rms_norm(x[row : row + 1], weight, 1e-6)[0], whole[row])


def test_views_and_bfloat16_go_to_torch() -> None:
    x, weight = torch.randn(4, 20), torch.rand(7)
    view = x[:, 3:10]
    torch.testing.assert_close(rms_norm(view, weight, 1e-6), rms_norm(view.clone(), weight, 1e-6))
    low = rms_norm(view.bfloat16(), weight.bfloat16(), 1e-6)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), rms_norm(view, weight, 1e-6), rtol=0.02, atol=0.02)

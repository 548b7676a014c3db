from __future__ import annotations

from janus_moe.policy import splitmix64


def test_numbers_are_those_of_the_published_generator() -> None:
    """First outputs for seed 0, as the authors' and Java's implementations give them."""
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert splitmix64.sequence(3).tolist() == expected

"""Claims about broken links: the fewest go after whom no broken link is left."""

from __future__ import annotations

import pytest
from tests.cluster.generations.obedient import attention, expert

from janus_moe.cluster.generations.links import Link, victims
from janus_moe.spec import InstanceId

A0, A1, E0, E1, E2 = attention(0), attention(1), expert(0), expert(1), expert(2)


@pytest.mark.parametrize(
    ("links", "gone"),
    [
        ([], []),
        ([(A0, E0)], [E0]),
        ([(E0, E1)], [E1]),  # equals: the youngest
        ([(A0, A1)], [A1]),
        ([(E0, E1), (E0, A0)], [E0]),  # the one with fewer links left
        ([(A0, E0), (A0, E1)], [A0]),
        ([(A0, E0), (A1, E0)], [E0]),
        ([(A0, E0), (A1, E1)], [E1, E0]),
        ([(E0, E1), (E1, E2), (E0, E2)], [E2, E1]),
    ],
)
def test_those_with_most_broken_links_go(links: list[Link], gone: list[InstanceId]) -> None:
    assert victims(links) == gone
    assert victims((end, start) for start, end in links) == gone

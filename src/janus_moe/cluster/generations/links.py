"""Which instances leave when links between living instances are broken.

The module is pure. It does not know how a break is noticed or what becomes of those that leave.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from janus_moe.spec import InstanceId

Link = tuple[InstanceId, InstanceId]


def victims(broken: Iterable[Link]) -> list[InstanceId]:
    """Instances without which no broken link is left.

    Whichever has fewest links left goes, that is, most of the broken ones; between equals an expert
    instance, then the youngest.
    """
    left, chosen = [*broken], list[InstanceId]()
    while left:
        counts = Counter(end for link in left for end in link)
        victim = max(counts, key=lambda i: (counts[i], i.pool == "expert", i.number))
        chosen.append(victim)
        left = [link for link in left if victim not in link]
    return chosen

"""What `janus profile exchange` measured of the links between instances, as a file."""

from __future__ import annotations

from pathlib import Path

import msgspec

from janus_moe.errors import ConfigError
from janus_moe.planner.latency import facts
from janus_moe.planner.latency.link_fit import COEFFICIENTS
from janus_moe.spec import Spec


class MeasuredPlan(Spec, frozen=True):
    """One exchange plan at one size.

    seconds: of one exchange, there and back.
    predicted_s: of a model fitted to other sizes.
    """

    plan: str
    tokens: int
    seconds: float
    predicted_s: float


class LinkProfile(Spec, frozen=True):
    """What `janus profile exchange` writes.

    links: coefficients of `LinkModel` by name.
    median_error, p90_error: relative, of sizes that were left out of the fit.
    attention_nodes, expert_nodes: node of each instance meanwhile.
    """

    machine: dict[str, str]
    attention_nodes: tuple[int, ...]
    expert_nodes: tuple[int, ...]
    hidden_size: int
    links: dict[str, float]
    median_error: float
    p90_error: float
    measured: tuple[MeasuredPlan, ...] = ()

    def __post_init__(self) -> None:
        if unknown := set(self.links) - set(COEFFICIENTS):
            raise ConfigError(f"links have {', '.join(COEFFICIENTS)}, not {', '.join(unknown)}")
        if negative := [name for name, value in self.links.items() if not value >= 0]:
            raise ConfigError(f"links cost 0 or more: {', '.join(negative)}")


def read_link_profile(path: Path) -> LinkProfile:
    """Raises ConfigError that names the file."""
    return facts.decode(path, LinkProfile)


def write_link_profile(path: Path, profile: LinkProfile) -> None:
    """As indented JSON."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(profile)) + b"\n")

"""From times of a live service to what no single operation explains: host and exchange.

A pure function of measurements; it runs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from janus_moe.errors import ConfigError
from janus_moe.perf.arrays import Array
from janus_moe.perf.coefficients import LinkLaw
from janus_moe.perf.links import ExchangeCounts
from janus_moe.perf.profile import HostLaw


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveCell:
    """One run of a service. measured_s, explained_s: of a step, and of its operations alone.

    counts: dispatch and combine of one layer. num_exchanges: MoE layers of a step.
    """

    transport: str
    batch: int
    measured_s: float
    explained_s: float
    counts: tuple[ExchangeCounts, ExchangeCounts]
    num_exchanges: int


def calibrate(cells: Sequence[LiveCell]) -> tuple[HostLaw, dict[str, LinkLaw]]:
    """Non-negative least squares of the unexplained times, relative to the measured ones.

    In one process (loopback) an exchange is a call and counts to the host; the host's time is the
    same for all transports.
    """
    if not cells:
        raise ConfigError("nothing was measured; a profile needs at least one run of a service")
    away = sorted({cell.transport for cell in cells} - {"loopback"})
    matrix = np.array([_row(cell, away) for cell in cells])
    rest = np.array([cell.measured_s - cell.explained_s for cell in cells])
    weights = 1 / np.array([cell.measured_s for cell in cells])
    found = non_negative_least_squares(matrix * weights[:, None], rest * weights)
    nothing = LinkLaw(latency_s=0.0, message_s=0.0, s_per_byte=0.0)
    links = {"loopback": nothing} if any(c.transport == "loopback" for c in cells) else {}
    for index, name in enumerate(away):
        latency, message, per_byte = found[2 + 3 * index : 5 + 3 * index].tolist()
        links[name] = LinkLaw(latency_s=latency, message_s=message, s_per_byte=per_byte)
    return HostLaw(step_s=float(found[0]), token_s=float(found[1])), links


def non_negative_least_squares(matrix: Array, target: Array) -> Array:
    """x >= 0 that minimises |matrix x - target|, by leaving out columns (all subsets: few columns).

    matrix: [rows, columns], at most a dozen columns.
    """
    columns = matrix.shape[1]
    best, best_error = np.zeros(columns), float(np.square(target).sum())
    for subset in range(1, 2**columns):
        chosen = [i for i in range(columns) if subset >> i & 1]
        part = np.linalg.lstsq(matrix[:, chosen], target, rcond=None)[0]
        if (part < 0).any():
            continue
        error = float(np.square(matrix[:, chosen] @ part - target).sum())
        if error < best_error * (1 - 1e-9):
            best_error = error
            best = np.zeros(columns)
            best[chosen] = part
    return best


def _row(cell: LiveCell, away: Sequence[str]) -> list[float]:
    row = [1.0, float(cell.batch), *[0.0] * (3 * len(away))]
    if cell.transport in away:
        at = 2 + 3 * away.index(cell.transport)
        for name, offset in (("intra_hops", 0), ("intra_messages", 1), ("intra_bytes", 2)):
            both = sum(float(np.asarray(getattr(counts, name))) for counts in cell.counts)
            row[at + offset] = cell.num_exchanges * both
    return row

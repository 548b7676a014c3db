"""From times of a live service to what no single operation explains: host and exchange.

A pure function of measurements; it runs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from janus_moe.errors import ConfigError
from janus_moe.planner.latency.arrays import Array
from janus_moe.planner.latency.coefficients import LinkLaw
from janus_moe.planner.latency.links import ExchangeCounts
from janus_moe.planner.latency.profile import HostLaw
from janus_moe.spec import ONE_PROCESS


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveCell:
    """One run of a service.

    measured_s, explained_s: of a step, and of its operations alone.
    counts: dispatch and combine of one layer.
    num_exchanges: MoE layers of a step.
    """

    transport: str
    shape: str
    batch: int
    measured_s: float
    explained_s: float
    counts: tuple[ExchangeCounts, ExchangeCounts]
    num_exchanges: int


def calibrate(cells: Sequence[LiveCell]) -> tuple[dict[str, HostLaw], dict[str, LinkLaw]]:
    """(host, exchange) of each transport, by non-negative least squares of the unexplained times,
    relative to the measured ones.

    One process (loopback) and several do different things between operations, so each transport
    has its own host time; in one process an exchange is a call and counts to it. What grows with
    the batch but less than in proportion is told by the operations' own times: they take longer in
    a service than alone. Of several processes a constant part may be given to the host or to the
    exchange: only their sum is known.
    """
    if not cells:
        raise ConfigError("nothing was measured; a profile needs at least one run of a service")
    hosts, links = {}, {}
    for transport in sorted({cell.transport for cell in cells}):
        own = [cell for cell in cells if cell.transport == transport]
        matrix = np.array([_row(cell) for cell in own])
        rest = np.array([cell.measured_s - cell.explained_s for cell in own])
        weights = 1 / np.array([cell.measured_s for cell in own])
        found = non_negative_least_squares(matrix * weights[:, None], rest * weights)
        step_s, token_s, latency, message, per_byte, longer = map(float, found)
        hosts[transport] = HostLaw(step_s=step_s, token_s=token_s, slower=1.0 + longer)
        links[transport] = LinkLaw(latency_s=latency, message_s=message, s_per_byte=per_byte)
    return hosts, links


def non_negative_least_squares(matrix: Array, target: Array) -> Array:
    """x >= 0 that minimises |matrix x - target|, by leaving out columns (all subsets: few columns);
    of columns that say the same, the first.

    matrix: [rows, columns], at most a dozen columns.
    """
    columns = matrix.shape[1]
    best, best_error = np.zeros(columns), float(np.square(target).sum())
    negligible = 1e-12 * best_error
    for subset in range(1, 2**columns):
        chosen = [i for i in range(columns) if subset >> i & 1]
        part = np.linalg.lstsq(matrix[:, chosen], target, rcond=None)[0]
        if (part < 0).any():
            continue
        error = float(np.square(matrix[:, chosen] @ part - target).sum())
        if error < best_error - negligible:
            best_error = error
            best = np.zeros(columns)
            best[chosen] = part
    return best


def _row(cell: LiveCell) -> list[float]:
    """Factors of step, token, hops, messages and bytes, and of how much longer operations take."""
    names = ("intra_hops", "intra_messages", "intra_bytes")
    exchange = [
        cell.num_exchanges * sum(float(np.asarray(getattr(c, name))) for c in cell.counts)
        for name in names
    ]
    if cell.transport in ONE_PROCESS:
        exchange = [0.0] * len(names)
    return [1.0, float(cell.batch), *exchange, cell.explained_s]

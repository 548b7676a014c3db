"""From measured exchanges to a model of links, with errors on exchanges it was not fitted to.

A pure function of measurements; it runs nothing and knows no plan, only what was counted of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from janus_moe.errors import ConfigError
from janus_moe.planner.latency.arrays import Array
from janus_moe.planner.latency.calibration import non_negative_least_squares
from janus_moe.planner.latency.links import ExchangeCounts, LinkModel

TERMS = {
    "intra_hops": "intra_latency_s",
    "intra_messages": "intra_message_s",
    "intra_bytes": "intra_s_per_byte",
    "inter_hops": "inter_latency_s",
    "inter_messages": "inter_message_s",
    "inter_bytes": "inter_s_per_byte",
    "total_messages": "shared_message_s",
    "total_bytes": "shared_s_per_byte",
}
"""Count -> the coefficient of `LinkModel` that prices it."""
COEFFICIENTS = (*TERMS.values(), "inter_burst_bytes")
BURSTS = (0.0, *(2000 * 1.5**step for step in range(15)))
"""Bytes that a link may let pass at once, as tried by a fit: 2 kB to 600 kB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredExchange:
    """Exchanges of one size that were timed.

    counts: dispatch and combine.
    seconds: of both together.
    group: what is left out together when the error is estimated, e.g. a batch size.
    """

    counts: tuple[ExchangeCounts, ExchangeCounts]
    seconds: float
    group: str


@dataclass(frozen=True, slots=True)
class LinkFit:
    """errors: [measurements] relative, of models fitted without the measurement's group."""

    model: LinkModel
    errors: tuple[float, ...]

    @property
    def median_error(self) -> float:
        return float(np.median(self.errors))

    @property
    def p90_error(self) -> float:
        return float(np.quantile(self.errors, 0.9))


def fit_links(measured: Sequence[MeasuredExchange]) -> LinkFit:
    """Non-negative least squares of relative errors; each group is left out once for the errors.

    Raises ConfigError with fewer than two groups or a time that is not above 0.
    """
    groups = sorted({one.group for one in measured})
    if len(groups) < 2:
        raise ConfigError(
            f"{len(groups)} group(s) of measured exchanges; a fit needs at least 2 "
            "(e.g. batch sizes) to tell how well it predicts"
        )
    wrong = next((one for one in measured if not one.seconds > 0), None)
    if wrong is not None:
        raise ConfigError(f"an exchange of {wrong.seconds} s was measured; times are above 0")
    errors = np.zeros(len(measured))
    for group in groups:
        others = [one for one in measured if one.group != group]
        model = _fit(others)
        for index, one in enumerate(measured):
            if one.group == group:
                errors[index] = abs(exchange_seconds(model, one.counts) / one.seconds - 1)
    return LinkFit(_fit(measured), tuple(errors.tolist()))


def exchange_seconds(model: LinkModel, counts: tuple[ExchangeCounts, ExchangeCounts]) -> float:
    """Dispatch and combine together."""
    return sum(float(model.seconds(direction)) for direction in counts)


def _fit(measured: Sequence[MeasuredExchange]) -> LinkModel:
    """Of all bursts the one that leaves the smallest errors, 0 where it makes no difference."""
    models = [_fit_with(measured, burst) for burst in BURSTS]
    best, least = models[0]
    for model, error in models[1:]:
        if error < least * (1 - 1e-6):
            best, least = model, error
    return best


def _fit_with(measured: Sequence[MeasuredExchange], burst: float) -> tuple[LinkModel, float]:
    """The model with this burst, and the mean of its squared relative errors."""
    seconds = np.array([one.seconds for one in measured])
    rows = np.array([_row(one.counts, burst) for one in measured])
    present = [index for index in range(len(TERMS)) if rows[:, index].any()]
    relative = rows[:, present] / seconds[:, None]
    scale = np.abs(relative).max(axis=0)  # bytes and hops differ by six orders of magnitude
    found = np.zeros(len(TERMS))
    found[present] = non_negative_least_squares(relative / scale, np.ones(len(seconds))) / scale
    coefficients = dict(zip(TERMS.values(), found.tolist(), strict=True))
    model = LinkModel(
        **coefficients,
        inter_burst_bytes=burst,
        gpus_per_node=1,
        intra_confidence="measured",
        inter_confidence="measured",
    )
    return model, float(np.mean(np.square(rows @ found / seconds - 1)))


def _row(counts: tuple[ExchangeCounts, ExchangeCounts], burst: float) -> Array:
    names = [field.name for field in fields(ExchangeCounts)]
    assert names == list(TERMS)
    both = np.array([[float(np.asarray(getattr(one, name))) for name in names] for one in counts])
    bytes_at = names.index("inter_bytes")
    both[:, bytes_at] = np.maximum(both[:, bytes_at] - burst, 0.0)
    return np.asarray(np.sum(both, axis=0), np.float64)

"""What users ask for: when each request arrives, and how many tokens go in and come out.

Knows nothing of files, deployments or how long anything takes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from janus_moe.errors import ConfigError


@dataclass(frozen=True, eq=False, kw_only=True)
class PrefixBlocks:
    """Which leading blocks of prompts are equal: blocks with the same hash hold the same tokens.

    hashes: [blocks] int64, the blocks of all requests, one request after the other.
    offsets: [requests + 1] int64; request r has the blocks offsets[r] .. offsets[r + 1].
    block_tokens: tokens per block; the last block of a request may be shorter.
    """

    hashes: NDArray[np.int64]
    offsets: NDArray[np.int64]
    block_tokens: int

    def of(self, request: int) -> NDArray[np.int64]:
        return self.hashes[self.offsets[request] : self.offsets[request + 1]]

    def take(self, requests: NDArray[np.int64]) -> PrefixBlocks:
        """The blocks of some requests, in that order."""
        lengths = np.diff(self.offsets)[requests]
        parts = [self.of(request) for request in requests.tolist()]
        hashes = np.concatenate(parts) if parts else np.zeros(0, np.int64)
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        return PrefixBlocks(hashes=hashes, offsets=offsets, block_tokens=self.block_tokens)


@dataclass(frozen=True, eq=False, kw_only=True)
class RequestTrace:
    """Requests in order of arrival. The arrays cannot be written.

    name: where it comes from; synthetic ones say so.
    arrival_s: [requests] float64, seconds since the workload began, ascending.
    prompt_tokens, output_tokens: [requests] int64, at least 1.
    num_skipped: requests of the source without prompt or output tokens, which are not here.
    """

    name: str
    arrival_s: NDArray[np.float64]
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    prefix: PrefixBlocks | None = None
    num_skipped: int = 0

    def __post_init__(self) -> None:
        count = len(self.arrival_s)
        if count == 0:
            raise ConfigError(f"{self.name}: the workload has no requests")
        if len(self.prompt_tokens) != count or len(self.output_tokens) != count:
            raise ConfigError(
                f"{self.name}: {count} arrivals, {len(self.prompt_tokens)} prompts and "
                f"{len(self.output_tokens)} outputs; give one of each per request"
            )
        if not np.isfinite(self.arrival_s).all() or self.arrival_s[0] < 0:
            raise ConfigError(f"{self.name}: arrivals must be 0 s or later, and finite")
        if (np.diff(self.arrival_s) < 0).any():
            raise ConfigError(f"{self.name}: arrivals must ascend; sort the requests")
        if self.prompt_tokens.min() < 1 or self.output_tokens.min() < 1:
            raise ConfigError(f"{self.name}: every request needs a prompt and an output token")
        for array in (self.arrival_s, self.prompt_tokens, self.output_tokens):
            array.setflags(write=False)

    @classmethod
    def of(
        cls,
        name: str,
        arrival_s: NDArray[np.float64],
        prompt_tokens: NDArray[np.int64],
        output_tokens: NDArray[np.int64],
        prefix: PrefixBlocks | None = None,
    ) -> RequestTrace:
        """Sorts requests by arrival (ties keep their order), starts at 0, leaves out empty ones."""
        order = np.argsort(arrival_s, kind="stable")
        order = order[(prompt_tokens[order] > 0) & (output_tokens[order] > 0)]
        arrival = arrival_s[order]
        return cls(
            name=name,
            arrival_s=arrival - (arrival[0] if len(arrival) else 0.0),
            prompt_tokens=prompt_tokens[order],
            output_tokens=output_tokens[order],
            prefix=prefix.take(order) if prefix else None,
            num_skipped=len(arrival_s) - len(order),
        )

    @property
    def num_requests(self) -> int:
        return len(self.arrival_s)

    @property
    def duration_s(self) -> float:
        """From the beginning to the last arrival."""
        return float(self.arrival_s[-1])

    def faster(self, factor: float) -> RequestTrace:
        """The same requests `factor` times as fast: a higher rate over a shorter time."""
        if not (factor > 0 and np.isfinite(factor)):
            raise ConfigError(f"the speed of a workload must be above 0, got {factor}")
        return self._replace(np.arange(self.num_requests), self.arrival_s / factor)

    def window(self, start_s: float, duration_s: float) -> RequestTrace:
        """The requests that arrive in [start_s, start_s + duration_s), which becomes [0, ...)."""
        first, last = np.searchsorted(self.arrival_s, [start_s, start_s + duration_s])
        if first == last:
            raise ConfigError(
                f"{self.name}: no request arrives from {start_s:g} s on for {duration_s:g} s; the "
                f"workload lasts {self.duration_s:g} s"
            )
        return self._replace(np.arange(first, last), self.arrival_s[first:last] - start_s)

    def rate(self, interval_s: float) -> NDArray[np.float64]:
        """[intervals] requests per second, the last interval possibly incomplete."""
        which = (self.arrival_s / interval_s).astype(np.int64)
        return np.bincount(which) / interval_s

    def _replace(self, kept: NDArray[np.int64], arrival_s: NDArray[np.float64]) -> RequestTrace:
        return RequestTrace(
            name=self.name,
            arrival_s=arrival_s,
            prompt_tokens=self.prompt_tokens[kept],
            output_tokens=self.output_tokens[kept],
            prefix=self.prefix.take(kept) if self.prefix else None,
            num_skipped=self.num_skipped,
        )

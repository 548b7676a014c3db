"""Streams of one running service, and the time between their tokens.

What the service does meanwhile is not known here.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from janus_moe.cluster.service import Service
from janus_moe.messages import SamplingParams

PROMPT_TOKENS = 16

Gaps = NDArray[np.floating[Any]]
"""[tokens] float64, seconds between two tokens of a stream."""


async def gaps_of(service: Service, num_streams: int, num_tokens: int) -> Gaps:
    """Lets greedy streams run at once and returns the gaps of all of them."""
    every = await asyncio.gather(*(_gaps(service, num_tokens, i) for i in range(num_streams)))
    return np.concatenate(every)


async def _gaps(service: Service, num_tokens: int, index: int) -> Gaps:
    sampling = SamplingParams(max_tokens=num_tokens, temperature=0, ignore_eos=True)
    prompt = [(37 * index + 11 * i) % service.plan.spec.vocab_size for i in range(PROMPT_TOKENS)]
    arrivals = []
    name = f"{time.monotonic_ns()}-{index}"
    async for chunk in service.engine.submit(name, prompt, sampling):
        arrivals += [time.perf_counter()] * len(chunk.token_ids)
    return np.diff(np.array(arrivals[2:]))  # the first tokens come while others are prefilled

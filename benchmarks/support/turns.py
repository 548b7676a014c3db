"""Services that are all up and take turns with the same decode batches.

All are hit alike by what else the machine does. The one that begins changes from round to round,
and the first round, which warms up, is not kept. What the services differ in is not known here.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import NamedTuple

import psutil
import torch

from janus_moe.cluster.service import Service
from janus_moe.config import EngineConfig
from janus_moe.profiling import live
from janus_moe.profiling.live import Decoded

PROMPT_TOKENS = 8


class Turn(NamedTuple):
    """One batch that one service has decoded.

    decoded: seconds of a step, and what it activated.
    cpu_s_per_token: worker -> seconds of processor time per produced token, prefill included.
    """

    decoded: Decoded
    cpu_s_per_token: dict[str, float]


class Running(NamedTuple):
    """A service that is up.

    workers: name -> process; empty where they are no children of this process.
    """

    service: Service
    workers: dict[str, psutil.Process]

    def cpu_s(self) -> dict[str, float]:
        """Seconds of processor time of every worker since it started."""
        return {
            name: sum(worker.cpu_times()[:2])  # user and system
            for name, worker in self.workers.items()
        }


Turns = dict[tuple[int, str], list[Turn]]
"""(batch, service) -> one turn for each round."""


async def take_turns(
    configs: Mapping[str, EngineConfig], batches: Sequence[int], num_rounds: int, num_steps: int
) -> Turns:
    """Starts one service for each config and lets them decode in turns.

    configs: name -> settings.
    batches: requests at once; a round has all of them.
    num_steps: decode steps of a turn.
    """
    found: Turns = {}
    async with contextlib.AsyncExitStack() as stack:
        services = [
            (name, await stack.enter_async_context(running(config)))
            for name, config in configs.items()
        ]
        for number in range(num_rounds + 1):
            first = number % len(services)
            for batch in batches:
                for name, one in services[first:] + services[:first]:
                    turn = await _turn(one, batch, number, num_steps)
                    if number:
                        found.setdefault((batch, name), []).append(turn)
    return found


@contextlib.asynccontextmanager
async def running(config: EngineConfig) -> AsyncIterator[Running]:
    """Keeps a service up; its workers are the children that came while it started."""
    before = {child.pid for child in psutil.Process().children()}
    async with live.running(config) as service:
        new = [child for child in psutil.Process().children() if child.pid not in before]
        yield Running(service, {_name_of(child): child for child in new})


def make_prompts(batch: int, turn: int, vocab_size: int) -> list[list[int]]:
    """Draws prompts that differ between turns, so that no prefix is cached."""
    generator = torch.Generator().manual_seed(1000 * turn + batch)
    return torch.randint(0, vocab_size, (batch, PROMPT_TOKENS), generator=generator).tolist()


async def _turn(one: Running, batch: int, number: int, num_steps: int) -> Turn:
    prompts = make_prompts(batch, number, one.service.engine.spec.vocab_size)
    before = one.cpu_s()
    decoded = await live.decode(one.service, prompts, num_steps)
    tokens = batch * (num_steps + 1)
    used = {name: (after - before[name]) / tokens for name, after in one.cpu_s().items()}
    return Turn(decoded, used)


def _name_of(worker: psutil.Process) -> str:
    """The name in a worker's command line, its process id where there is none."""
    try:
        return str(json.loads(worker.cmdline()[-1])["name"])
    except (ValueError, KeyError, IndexError, TypeError):
        return str(worker.pid)

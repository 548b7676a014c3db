"""The shared-memory exchange among real processes: same sums, no leaks, whatever kills them.

Run as a program, this file is one instance of a pool: FOLDER POOL INDEX STEPS SHAPE.
"""

from __future__ import annotations

import gc
import hashlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from janus_moe.errors import ExchangeClosed, ExchangeTimeout
from janus_moe.spec import InstanceId, Membership, Pool, PoolShape
from janus_moe.transport import Exchange, ExchangeLayout, ReplyMetadata, WaitRule, open_exchange
from janus_moe.transport.network.rendezvous import FolderRendezvous

HIDDEN = 16
NUM_LAYERS = 3
FDS = Path("/proc/self/fd")
needs_proc = pytest.mark.skipif(not FDS.exists(), reason="counts descriptors in /proc")


def num_tokens(instance: int, step: int) -> int:
    """Idle every third step, a different instance each time."""
    return 0 if (instance + step) % 3 == 2 else 1 + (7 * instance + 3 * step) % 11


def rows(instance: int, step: int, layer: int) -> Tensor:
    generator = torch.Generator().manual_seed(instance + 100 * step + 10_000 * layer)
    hidden = torch.randn(num_tokens(instance, step), HIDDEN, generator=generator)
    return hidden.to(torch.bfloat16)


def partial_sums(expert: int, batch: Tensor) -> Tensor:
    return torch.sin(batch.float() * (expert + 1.7))


def expected_digest(instance: int, num_expert_instances: int, num_steps: int) -> str:
    """Sums are row by row here, so the other instances' rows do not matter."""
    digest = hashlib.sha256()
    for step in range(num_steps):
        for layer in range(NUM_LAYERS if num_tokens(instance, step) else 0):
            batch = rows(instance, step, layer)
            total = partial_sums(0, batch)
            for expert in range(1, num_expert_instances):
                total = total + partial_sums(expert, batch)
            digest.update(total.numpy().tobytes())
    return digest.hexdigest()


def run_attention(exchange: Exchange, index: int, num_steps: int) -> str:
    port = exchange.attention_port(index, WaitRule(timeout_s=30.0))
    digest = hashlib.sha256()
    for step in range(num_steps):
        count = num_tokens(index, step)
        port.begin_step(count)
        for layer in range(NUM_LAYERS if count else 0):
            combined = port.combine(port.dispatch(layer, rows(index, step, layer)))
            digest.update(combined.hidden.numpy().tobytes())
    return digest.hexdigest()


def run_expert(exchange: Exchange, index: int) -> str:
    port = exchange.expert_port(index, WaitRule(timeout_s=30.0))
    with suppress(ExchangeClosed):
        while True:
            work = port.accept()
            if work is not None:
                port.reply(work, partial_sums(index, work.hidden), ReplyMetadata(1, 2))
    return "closed"


def join(folder: str, shape: PoolShape, instance: InstanceId) -> Exchange:
    layout = ExchangeLayout(
        membership=Membership.first(shape), max_tokens=16, hidden_size=HIDDEN, dtype="bfloat16"
    )
    return open_exchange("shm", layout, [instance], FolderRendezvous(Path(folder)), "127.0.0.1")


def main(folder: str, pool: Any, index: str, num_steps: str, attention: str, expert: str) -> None:
    torch.set_num_threads(1)
    shape = PoolShape(attention=int(attention), expert=int(expert))
    exchange = join(folder, shape, InstanceId(pool=pool, number=int(index)))
    if pool == "attention":
        print(run_attention(exchange, int(index), int(num_steps)))
    else:
        print(run_expert(exchange, int(index)))
    exchange.close()


# --- the test's side ----------------------------------------------------------------------------


class Launch:
    """Attention instance 0 in this process, others in processes of their own."""

    def __init__(self, shape: PoolShape, folder: Path) -> None:
        self.shape = shape
        self.folder = folder
        self.processes: dict[str, subprocess.Popen[str]] = {}

    def start(self, pool: Pool, index: int, num_steps: int = 0) -> None:
        own = [str(self.folder), pool, str(index), str(num_steps)]
        command = [sys.executable, __file__, *own, str(self.shape.attention)]
        self.processes[f"{pool} {index}"] = subprocess.Popen(
            [*command, str(self.shape.expert)], stdout=subprocess.PIPE, text=True
        )

    def join(self, pool: Pool = "attention", index: int = 0) -> Exchange:
        return join(str(self.folder), self.shape, InstanceId(pool=pool, number=index))

    def output(self, name: str) -> str:
        return self.processes[name].communicate(timeout=60)[0].strip()


@contextmanager
def launched(attention: int, expert: int, folder: Path) -> Iterator[Launch]:
    launch = Launch(PoolShape(attention=attention, expert=expert), folder)
    try:
        yield launch
    finally:
        for process in launch.processes.values():
            process.kill()
            process.communicate(timeout=10)


def test_processes_get_the_plain_sums_bit_for_bit(tmp_path: Path) -> None:
    """2A2E; one attention instance is this process, as a start takes seconds."""
    num_steps = 30
    with launched(2, 2, tmp_path) as launch:
        for index in range(2):
            launch.start("expert", index)
        launch.start("attention", 1, num_steps)
        exchange = launch.join()
        assert run_attention(exchange, 0, num_steps) == expected_digest(0, 2, num_steps)
        assert launch.output("attention 1") == expected_digest(1, 2, num_steps)
        exchange.shutdown()
        for index in range(2):
            assert launch.output(f"expert {index}") == "closed"
            assert launch.processes[f"expert {index}"].returncode == 0
        exchange.close()


@needs_proc
def test_a_killed_expert_is_named_with_its_pid_and_nothing_remains(tmp_path: Path) -> None:
    gc.collect()
    before = _descriptors()
    _kill_an_expert_between_two_steps(tmp_path)
    gc.collect()  # the caught exception's traceback refers to the port, and to itself
    assert _descriptors() == before


def _kill_an_expert_between_two_steps(folder: Path) -> None:
    with launched(1, 2, folder) as launch, ThreadPoolExecutor(2) as threads:
        launch.start("expert", 1)
        other = threads.submit(launch.join, "expert", 0)
        exchange = launch.join()
        threads.submit(run_expert, other.result(60), 0)
        victim = launch.processes["expert 1"]
        hidden = torch.zeros(1, HIDDEN, dtype=torch.bfloat16)
        port = exchange.attention_port(0, WaitRule(timeout_s=30.0))
        port.begin_step(1)
        port.combine(port.dispatch(0, hidden))

        port = exchange.attention_port(0, WaitRule(timeout_s=0.4))
        port.begin_step(1)
        victim.send_signal(signal.SIGKILL)
        victim.wait(10)
        ticket = port.dispatch(2, hidden)
        started = time.monotonic()
        with pytest.raises(ExchangeTimeout, match=rf"^expert 1 \(pid {victim.pid}\)") as caught:
            port.combine(ticket)
        assert time.monotonic() - started < 5.0
        assert (caught.value.stage, caught.value.step, caught.value.layer) == ("reply", 1, 2)
        exchange.shutdown()
    other.result().close()
    exchange.close()


def _descriptors() -> list[str]:
    targets = []
    for fd in FDS.iterdir():
        with suppress(OSError):  # the one that lists the folder is gone by now
            targets.append(str(fd.readlink()))
    return sorted(target for target in targets if "janus" in target or "eventfd" in target)


if __name__ == "__main__":
    main(*sys.argv[1:])

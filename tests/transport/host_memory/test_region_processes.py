"""The shared-memory exchange among real processes: same sums, no leaks, whatever kills them.

Run as a program, this file is one instance of a pool: ADDRESS POOL INDEX STEPS.
"""

from __future__ import annotations

import gc
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import pytest
import torch
from torch import Tensor

from janus_moe.errors import ExchangeClosed, ExchangeTimeout
from janus_moe.spec import PoolShape
from janus_moe.transport import ReplyMetadata, ShmAddress, ShmLayout, ShmRegion, WaitRule

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


def run_attention(region: ShmRegion, index: int, num_steps: int) -> str:
    port = region.attention_port(index, WaitRule(timeout_s=30.0))
    digest = hashlib.sha256()
    for step in range(num_steps):
        count = num_tokens(index, step)
        port.begin_step(count)
        for layer in range(NUM_LAYERS if count else 0):
            combined = port.combine(port.dispatch(layer, rows(index, step, layer)))
            digest.update(combined.hidden.numpy().tobytes())
    return digest.hexdigest()


def run_expert(region: ShmRegion, index: int) -> str:
    port = region.expert_port(index, WaitRule(timeout_s=30.0))
    with suppress(ExchangeClosed):
        while True:
            work = port.accept()
            if work is not None:
                port.reply(work, partial_sums(index, work.hidden), ReplyMetadata(1, 2))
    return "closed"


def main(address: str, pool: str, index: str, num_steps: str) -> None:
    torch.set_num_threads(1)
    region = ShmRegion.attach(msgspec.json.decode(address, type=ShmAddress))
    if pool == "attention":
        print(run_attention(region, int(index), int(num_steps)))
    else:
        print(run_expert(region, int(index)))
    region.close()


# --- the launcher's side ------------------------------------------------------------------------


class Launch:
    def __init__(self, shape: PoolShape) -> None:
        layout = ShmLayout(shape=shape, max_tokens=16, hidden_size=HIDDEN, dtype="bfloat16")
        self.region = ShmRegion.create(layout)
        self.processes: dict[str, subprocess.Popen[str]] = {}

    def start(self, pool: str, index: int, num_steps: int = 0) -> None:
        address = msgspec.json.encode(self.region.address).decode()
        command = [sys.executable, __file__, address, pool, str(index), str(num_steps)]
        self.processes[f"{pool} {index}"] = subprocess.Popen(
            command, pass_fds=self.region.fds, stdout=subprocess.PIPE, text=True
        )

    def output(self, name: str) -> str:
        return self.processes[name].communicate(timeout=60)[0].strip()


@contextmanager
def launched(attention: int, expert: int) -> Iterator[Launch]:
    launch = Launch(PoolShape(attention=attention, expert=expert))
    try:
        yield launch
    finally:
        launch.region.shutdown()
        for process in launch.processes.values():
            process.kill()
            process.communicate(timeout=10)
        launch.region.close()


def test_processes_get_the_plain_sums_bit_for_bit() -> None:
    """2A2E; one attention instance is this process, as a start takes seconds."""
    num_steps = 30
    with launched(2, 2) as launch:
        for index in range(2):
            launch.start("expert", index)
        launch.start("attention", 1, num_steps)
        assert run_attention(launch.region, 0, num_steps) == expected_digest(0, 2, num_steps)
        assert launch.output("attention 1") == expected_digest(1, 2, num_steps)
        launch.region.shutdown()
        for index in range(2):
            assert launch.output(f"expert {index}") == "closed"
            assert launch.processes[f"expert {index}"].returncode == 0


@needs_proc
def test_a_killed_expert_is_named_with_its_pid_and_nothing_remains() -> None:
    gc.collect()
    before = _descriptors()
    _kill_an_expert_between_two_steps()
    gc.collect()  # the caught exception's traceback refers to the port, and to itself
    assert _descriptors() == before


def _kill_an_expert_between_two_steps() -> None:
    with launched(1, 2) as launch, ThreadPoolExecutor(1) as threads:
        assert os.fstat(launch.region.fds[0]).st_nlink == 0, "a name would outlive the processes"
        launch.start("expert", 1)
        threads.submit(run_expert, launch.region, 0)
        victim = launch.processes["expert 1"]
        hidden = torch.zeros(1, HIDDEN, dtype=torch.bfloat16)
        port = launch.region.attention_port(0, WaitRule(timeout_s=30.0))
        port.begin_step(1)
        port.combine(port.dispatch(0, hidden))

        port = launch.region.attention_port(0, WaitRule(timeout_s=0.4))
        port.begin_step(1)
        victim.send_signal(signal.SIGKILL)
        victim.wait(10)
        ticket = port.dispatch(2, hidden)
        started = time.monotonic()
        with pytest.raises(ExchangeTimeout, match=rf"^expert 1 \(pid {victim.pid}\)") as caught:
            port.combine(ticket)
        assert time.monotonic() - started < 5.0
        assert (caught.value.stage, caught.value.step, caught.value.layer) == ("reply", 1, 2)
        launch.region.shutdown()


def _descriptors() -> list[str]:
    targets = []
    for fd in FDS.iterdir():
        with suppress(OSError):  # the one that lists the folder is gone by now
            targets.append(str(fd.readlink()))
    return sorted(target for target in targets if "janus" in target or "eventfd" in target)


if __name__ == "__main__":
    main(*sys.argv[1:])

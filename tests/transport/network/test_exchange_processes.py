"""The exchange among real processes: same sums, and a killed one is named by all.

Between nodes they use gloo, within a node memory that they share.

Run as a program, this file is one instance of a pool: FOLDER POOL INDEX STEPS.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from janus_moe.errors import ExchangeClosed, ExchangeError, PeerLost
from janus_moe.spec import InstanceId, Membership, Pool
from janus_moe.transport import AttentionPort, ExchangeLayout, ReplyMetadata, WaitRule
from janus_moe.transport.network.exchange import NetworkExchange, open_network
from janus_moe.transport.network.rendezvous import FolderRendezvous

HIDDEN = 16
NUM_LAYERS = 3
RULE = WaitRule(timeout_s=30.0)
LAYOUT = ExchangeLayout(
    membership=Membership.on_hosts((0, 1), (1, 2)),
    hidden_size=HIDDEN,
    dtype="bfloat16",
    max_tokens=16,
    plan="2pc-relay",
)


def num_tokens(instance: int, step: int) -> int:
    """Idle every third step, a different instance each time."""
    return 0 if (instance + step) % 3 == 2 else 1 + (7 * instance + 3 * step) % 11


def rows(instance: int, step: int, layer: int) -> Tensor:
    generator = torch.Generator().manual_seed(instance + 100 * step + 10_000 * layer)
    hidden = torch.randn(num_tokens(instance, step), HIDDEN, generator=generator)
    return hidden.to(torch.bfloat16)


def partial_sums(expert: int, batch: Tensor) -> Tensor:
    return torch.sin(batch.float() * (expert + 1.7))


def expected_digest(instance: int, num_steps: int) -> str:
    """Sums are row by row here, so the other instances' rows do not matter."""
    digest = hashlib.sha256()
    for step in range(num_steps):
        for layer in range(NUM_LAYERS if num_tokens(instance, step) else 0):
            batch = rows(instance, step, layer)
            digest.update((partial_sums(0, batch) + partial_sums(1, batch)).numpy().tobytes())
    return digest.hexdigest()


def run_attention(port: AttentionPort, index: int, stop: int, start: int = 0) -> str:
    digest = hashlib.sha256()
    for step in range(start, stop):
        count = num_tokens(index, step)
        port.begin_step(count)
        for layer in range(NUM_LAYERS if count else 0):
            combined = port.combine(port.dispatch(layer, rows(index, step, layer)))
            digest.update(combined.hidden.numpy().tobytes())
    return digest.hexdigest()


def run_expert(end: NetworkExchange) -> None:
    port = end.expert_port(LAYOUT.membership.rank(end.instance), RULE)
    while True:
        work = port.accept()
        if work is not None:
            port.reply(work, partial_sums(end.instance.number, work.hidden), ReplyMetadata(1, 2))


def join(folder: str, pool: Pool, index: int) -> NetworkExchange:
    instance = InstanceId(pool=pool, number=index)
    return open_network(LAYOUT, instance, FolderRendezvous(Path(folder)), "127.0.0.1")


def main(folder: str, pool: Pool, index: str, num_steps: str) -> None:
    torch.set_num_threads(1)
    end = join(folder, pool, int(index))
    try:
        if pool == "attention":
            port = end.attention_port(int(index), RULE)
            print(run_attention(port, int(index), int(num_steps)))
        else:
            run_expert(end)
    except ExchangeClosed:
        print("closed")
    except ExchangeError as error:
        print(error)
    end.close()


# --- the test's side ----------------------------------------------------------------------------


@contextmanager
def processes(folder: Path, num_steps: int) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """All instances but attention 0."""
    names: list[tuple[str, int]] = [("expert", 0), ("expert", 1), ("attention", 1)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = {
        f"{pool} {index}": subprocess.Popen(
            [sys.executable, __file__, str(folder), pool, str(index), str(num_steps)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for pool, index in names
    }
    try:
        yield started
    finally:
        for process in started.values():
            process.kill()
            process.communicate(timeout=10)


def test_processes_get_the_plain_sums_and_all_name_the_one_that_is_killed(tmp_path: Path) -> None:
    """2A2E on three nodes; one attention instance is this process, as a start takes seconds."""
    num_steps = 30
    with processes(tmp_path, num_steps=1_000_000) as started:
        end = join(str(tmp_path), "attention", 0)
        port = end.attention_port(0, RULE)
        assert run_attention(port, 0, num_steps) == expected_digest(0, num_steps)
        victim = started["expert 0"]  # a host peer of attention 1
        victim.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        with pytest.raises(PeerLost, match=rf"^expert 0 \(pid {victim.pid}\) is gone"):
            run_attention(port, 0, 1_000_000, start=num_steps)
        for other in ("expert 1", "attention 1"):
            said = started[other].communicate(timeout=30)[0]
            assert f"expert 0 (pid {victim.pid}) is gone" in said
            assert started[other].returncode == 0
        assert time.monotonic() - killed < 15.0
        end.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4])  # type: ignore[arg-type]
    sys.stdout.flush()
    os._exit(0)  # a thread of gloo that still waits would abort the process

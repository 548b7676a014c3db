"""Claims about the hosts that benchmarks and tests make from network namespaces: they reach each
other, their links can be limited, changed and cut, and nothing of them survives."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from benchmarks.support import hosts
from benchmarks.support.hosts import HostsUnavailable, Link, network, why_unavailable

needs_namespaces = pytest.mark.skipif(
    why_unavailable(Link(rate_gbps=1.0)) is not None,
    reason=f"no hosts here: {why_unavailable(Link(rate_gbps=1.0))}",
)


def names(stem: str = hosts.PREFIX) -> set[str]:
    return {path.name for path in hosts.NAMESPACES.glob(f"{stem}-*")}


@needs_namespaces
def test_hosts_reach_each_other_over_links_that_can_be_cut() -> None:
    before = names()
    with network(3, Link(rate_gbps=0.2)) as net:
        assert 0.1 < hosts.throughput_gbps(net[0], net[2], seconds=0.3) < 0.3
        net.cut(net[1])
        reach = "import socket,sys; socket.create_connection((sys.argv[1], 1), 0.3)"
        for target, error in ((net[1], "timed out"), (net[2], "ConnectionRefused")):
            with pytest.raises(subprocess.CalledProcessError) as caught:
                net[0].run([sys.executable, "-c", reach, target.address])
            assert error in caught.value.stderr
        left = net[2].popen(["sleep", "60"])
    assert left.returncode == -signal.SIGTERM
    assert names() == before


@needs_namespaces
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_nothing_remains_after_a_signal(number: signal.Signals) -> None:
    code = (
        "import time\nfrom benchmarks.support.hosts import network\n"
        "with network(2) as net:\n"
        "    net[1].popen(['sleep', '60']); print('up', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    stem = f"{hosts.PREFIX}-{process.pid}"
    assert len(names(stem)) == 3
    process.send_signal(number)
    assert process.wait(20) != 0
    process.stdout.close()
    assert not names(stem)


def test_refusal_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(HostsUnavailable, match="root"), network(2):
        pass
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(HostsUnavailable, match="ip and tc"), network(2):
        pass


def test_a_link_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="rate_gbps"):
        Link(rate_gbps=0.0)
    with pytest.raises(ValueError, match="delay_us"):
        Link(delay_us=-1.0)

"""Several hosts on one machine: network namespaces joined by a bridge, with limited links.

    with network(3, Link(rate_gbps=1.0)) as hosts:
        hosts[0].run(["ping", "-c", "1", hosts[1].address])
        server = hosts[2].popen([sys.executable, "-m", "http.server"])

Every host has its own interfaces, ports and loopback, and the address 10.77.0.i; files and
processors are shared. The bridge lives in a namespace of its own, so the machine's own network is
not touched, and deleting the namespaces removes everything. Needs root, `ip` and `tc`. What runs in
the hosts is not known here.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

PREFIX = "janus-net"
SUBNET = "10.77.0"
NAMESPACES = Path("/run/netns")
GRACE_S = 3.0
MTU = 9000  # jumbo frames: the kernel reaches the rates with few bytes of headers and few timers
# What a tbf link may send at once after a pause. Larger bursts let whole messages pass unlimited,
# smaller ones make the kernel miss high rates (50 us: 6 Gb/s instead of 10).
BURST_S = 250e-6
MIN_BURST_BYTES = 20_000
# Room for a whole incast, so that a step waits for the rate of a link and not for retransmissions.
QUEUE_BYTES = 32 * 2**20


class HostsUnavailable(Exception):
    """This machine cannot make such hosts; the message says why."""


@dataclass(frozen=True, slots=True)
class Link:
    """A host's link, the same in both directions.

    rate_gbps: None means as fast as the kernel copies.
    delay_us: one way; it needs the kernel's netem queue, which small kernels come without.
    queue_bytes: wait at most for a limited rate; what comes on top is dropped. A TCP connection
        that sends without end fills the queue, so others on the link need a short one.
    """

    rate_gbps: float | None = None
    delay_us: float = 0.0
    queue_bytes: int = QUEUE_BYTES

    def __post_init__(self) -> None:
        if self.rate_gbps is not None and not self.rate_gbps > 0:
            raise ValueError(f"rate_gbps must be above 0, got {self.rate_gbps}")
        if not self.delay_us >= 0:
            raise ValueError(f"delay_us must be 0 or more, got {self.delay_us}")
        if not self.queue_bytes >= MTU:
            raise ValueError(f"queue_bytes must be {MTU} or more, got {self.queue_bytes}")


@dataclass(slots=True)
class Host:
    """A host is one namespace.

    interface: its end of the cable.
    port: the bridge's end.
    processes: that were started inside.
    """

    index: int
    namespace: str
    address: str
    interface: str
    port: str
    processes: list[subprocess.Popen[Any]] = field(default_factory=list)

    def command(self, arguments: Sequence[str]) -> list[str]:
        """The arguments, run inside; the process that `subprocess` starts becomes the command."""
        return ["ip", "netns", "exec", self.namespace, *arguments]

    def popen(self, arguments: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Starts a process inside; it is ended with the network at the latest."""
        process = subprocess.Popen(self.command(arguments), **options)
        self.processes.append(process)
        return process

    def run(
        self, arguments: Sequence[str], timeout_s: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command inside to its end; raises CalledProcessError when it fails."""
        return subprocess.run(
            self.command(arguments), capture_output=True, text=True, timeout=timeout_s, check=True
        )


class Network(Sequence[Host]):
    """The hosts, and their links, which may change while programs run."""

    def __init__(self, hosts: list[Host], bridge: str) -> None:
        self._hosts = hosts
        self._bridge = bridge

    def __getitem__(self, index: Any) -> Any:
        return self._hosts[index]

    def __len__(self) -> int:
        return len(self._hosts)

    def set_link(self, link: Link, host: Host | None = None) -> None:
        """Gives one host, or every host, this link, in both directions."""
        for one in self._hosts if host is None else [host]:
            for namespace, interface in ((one.namespace, one.interface), (self._bridge, one.port)):
                _shape(namespace, interface, link)

    def cut(self, host: Host) -> None:
        """Takes a host's cable out: no process is told, packets just end."""
        _ip("-n", self._bridge, "link", "set", host.port, "down")

    def mend(self, host: Host) -> None:
        _ip("-n", self._bridge, "link", "set", host.port, "up")


def why_unavailable(link: Link | None = None) -> str | None:
    """Says why `network` would refuse; None means that it would not."""
    if not sys.platform.startswith("linux"):
        return "network namespaces need Linux"
    if os.geteuid() != 0:
        return "making network namespaces needs root"
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    if missing:
        return f"{' and '.join(missing)} not found; install iproute2"
    wanted = _queues(link or Link())
    try:
        lacking = wanted - queues()
    except HostsUnavailable as error:
        return str(error)
    if lacking:
        return f"this kernel has no {' and '.join(sorted(lacking))} queue for such a link"
    return None


def queues() -> set[str]:
    """Tries in a scratch namespace which of tbf and netem this kernel offers."""
    name = f"{PREFIX}-{os.getpid()}-try"
    try:
        _ip("netns", "add", name)
    except subprocess.CalledProcessError as error:
        raise HostsUnavailable(f"no network namespace: {error.stderr.strip()}") from None
    tries = {"tbf": ["rate", "1gbit", "burst", "64kb", "limit", "1mb"], "netem": ["delay", "1ms"]}
    try:
        return {
            kind
            for kind, options in tries.items()
            if _try("tc", "-n", name, "qdisc", "replace", "dev", "lo", "root", kind, *options)
        }
    finally:
        _ip("netns", "del", name)


@contextlib.contextmanager
def network(count: int, link: Link | None = None) -> Iterator[Network]:
    """Makes `count` hosts that reach each other; they end with every process in them.

    SIGTERM ends the block like SIGINT does (in the main thread). What a run that was killed with
    SIGKILL left behind is removed by the next one. Raises HostsUnavailable with the reason.
    """
    link = link or Link()
    if not 1 <= count <= 250:
        raise ValueError(f"1 to 250 hosts, got {count}")
    if reason := why_unavailable(link):
        raise HostsUnavailable(reason)
    _remove_abandoned()
    stem = f"{PREFIX}-{os.getpid()}"
    bridge = f"{stem}-bridge"
    hosts = [
        Host(i, f"{stem}-{i}", f"{SUBNET}.{i + 1}", f"eth{i}", f"port{i}") for i in range(count)
    ]
    with _sigterm_raises():
        try:
            made = Network(hosts, bridge)
            _connect(bridge, hosts)
            made.set_link(link)
            yield made
        finally:
            for host in hosts:
                _end_processes(host)
            for name in (*(host.namespace for host in hosts), bridge):
                _try("ip", "netns", "del", name)


def _connect(bridge: str, hosts: Sequence[Host]) -> None:
    _ip("netns", "add", bridge)
    _ip("-n", bridge, "link", "add", "bridge", "type", "bridge")
    _ip("-n", bridge, "link", "set", "bridge", "up")
    for host in hosts:
        _ip("netns", "add", host.namespace)
        cable = ("link", "add", host.port, "type", "veth", "peer", "name", host.interface)
        _ip("-n", bridge, *cable, "netns", host.namespace)
        mtu = ("mtu", str(MTU))
        _ip("-n", bridge, "link", "set", host.port, "master", "bridge", *mtu, "up")
        address = f"{host.address}/24"
        _ip("-n", host.namespace, "address", "add", address, "dev", host.interface)
        _ip("-n", host.namespace, "link", "set", host.interface, *mtu, "up")
        _ip("-n", host.namespace, "link", "set", "lo", "up")


def _shape(namespace: str, interface: str, link: Link) -> None:
    device = ("tc", "-n", namespace, "qdisc")
    _try(*device, "del", "dev", interface, "root")
    parent = ["root", "handle", "1:"]
    if link.delay_us:
        delay = ("netem", "delay", f"{link.delay_us:g}us", "limit", "100000")
        _run(*device, "add", "dev", interface, *parent, *delay)
        parent = ["parent", "1:1", "handle", "2:"]
    if link.rate_gbps is not None:
        rate = round(link.rate_gbps * 1e9)
        burst = max(MIN_BURST_BYTES, round(rate / 8 * BURST_S))
        options = ("rate", f"{rate}bit", "burst", str(burst), "limit", str(link.queue_bytes))
        _run(*device, "add", "dev", interface, *parent, "tbf", *options)


def _queues(link: Link) -> set[str]:
    wanted = {"tbf": link.rate_gbps is not None, "netem": link.delay_us > 0}
    return {kind for kind, needed in wanted.items() if needed}


def _end_processes(host: Host) -> None:
    """Ends every process inside, all of which are ours: SIGTERM first, then SIGKILL."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + GRACE_S
        for pid in _pids(host.namespace):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        while _pids(host.namespace) and time.monotonic() < deadline:
            for process in host.processes:
                process.poll()
            time.sleep(0.02)
    for process in host.processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)


def _pids(namespace: str) -> list[int]:
    done = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True)
    return [int(word) for word in done.stdout.split()]


def _remove_abandoned() -> None:
    """Removes namespaces of runs whose process is gone."""
    for path in NAMESPACES.glob(f"{PREFIX}-*"):
        owner = path.name.removeprefix(f"{PREFIX}-").split("-")[0]
        if owner.isdigit() and not Path("/proc", owner).exists():
            for pid in _pids(path.name):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            _try("ip", "netns", "del", path.name)


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """SIGTERM becomes SystemExit, so that `finally` runs; only the main thread can arrange it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # once is enough; let the clean-up finish
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(*arguments: str) -> None:
    subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=30)


def _try(*arguments: str) -> bool:
    return subprocess.run(arguments, capture_output=True, timeout=30).returncode == 0


_RECEIVER = """
import socket, time
listener = socket.create_server(("", 5001))
print("listening", flush=True)
peer, _ = listener.accept()
buffer = bytearray(1 << 20)
received = peer.recv_into(buffer)
start, received = time.perf_counter(), 0
while count := peer.recv_into(buffer):
    received += count
print(received * 8e-9 / (time.perf_counter() - start))
"""
_SENDER = """
import socket, sys, time
peer = socket.create_connection((sys.argv[1], 5001))
block, end = bytes(1 << 16), time.perf_counter() + float(sys.argv[2])
while time.perf_counter() < end:
    peer.sendall(block)
"""


def throughput_gbps(source: Host, target: Host, seconds: float = 1.0) -> float:
    """Measures what one TCP connection from `source` to `target` carries."""
    receiver = target.popen([sys.executable, "-c", _RECEIVER], stdout=subprocess.PIPE, text=True)
    assert receiver.stdout is not None
    receiver.stdout.readline()
    source.run([sys.executable, "-c", _SENDER, target.address, str(seconds)])
    return float(receiver.communicate(timeout=60)[0])

"""A worker process: it says hello, builds its instances, runs each in a thread, passes on messages.

Whether it hosts one instance (shm) or all of them (loopback) makes no difference here. An error
in any instance ends the whole worker after its sentence has reached the engine.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import queue
import sys
import threading
from collections.abc import Sequence
from functools import partial

import msgspec

from janus_moe import __version__
from janus_moe.cluster.worker.bootstrap import Bootstrap
from janus_moe.cluster.worker.death_signal import die_with
from janus_moe.cluster.worker.generations import Generations
from janus_moe.cluster.worker.heartbeat import Heartbeat
from janus_moe.cluster.worker.hosted_instance import HostedInstance
from janus_moe.cluster.worker.worker_channel import WorkerChannel
from janus_moe.cluster.worker.worker_instances import build_instances
from janus_moe.errors import ExchangeError, HostLost, JanusError, RoutingDivergence
from janus_moe.messages import (
    CommitGeneration,
    DropGeneration,
    Failed,
    Hello,
    OpenGeneration,
    Ready,
    Setup,
    Stop,
    StorePut,
    ToWorker,
)
from janus_moe.spec import InstanceId

logger = logging.getLogger(__name__)

SWITCH_INTERVAL_S = 0.0005
"""How long a thread beside the serving one may keep the interpreter from it; 5 ms is the default,
which is a whole step of a small model."""
SETUP_S = 60.0


def run(bootstrap: Bootstrap) -> int:
    """Lives until told to stop; returns the exit status."""
    channel = WorkerChannel(bootstrap, on_orphaned=_leave_at_once)
    channel.send(Hello(name=bootstrap.name, pid=os.getpid(), version=__version__))
    try:
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        setup = _first_message(bootstrap, channel)
        if isinstance(setup, Stop):
            return 0
        if not isinstance(setup, Setup):
            raise TypeError(f"expected a setup first, got {type(setup).__name__}")
        if bootstrap.checkpoint is not None:
            setup = msgspec.structs.replace(setup, checkpoint=bootstrap.checkpoint)
        instances = build_instances(setup, channel.send)
        generations = Generations(bootstrap.name, setup, instances, channel, bootstrap.bind_host)
        Heartbeat(bootstrap.heartbeat_fd).start({str(one.id): one.spans for one in instances})
        channel.send(Ready(name=bootstrap.name))
        return _serve(instances, generations, channel)
    # A last resort: the end of the process; the engine is to learn why.
    except Exception as error:
        _report(bootstrap.name, error, channel)
        return 1
    finally:
        channel.close()


def _first_message(bootstrap: Bootstrap, channel: WorkerChannel) -> ToWorker:
    """On one host the lifeline ends the wait; over a network there is a deadline besides."""
    try:
        return channel.inbox.get(timeout=None if bootstrap.secret_fd is None else SETUP_S)
    except queue.Empty:
        raise HostLost(
            f"the engine at {bootstrap.endpoint} sent no setup within {SETUP_S:g} s"
        ) from None


def _serve(
    instances: Sequence[HostedInstance], generations: Generations, channel: WorkerChannel
) -> int:
    """Runs every instance in a thread and hands messages on until the worker is told to stop."""
    failed = threading.Event()

    def live(instance: HostedInstance) -> None:
        try:
            instance.serve(partial(_report_lost, instance.id, channel))
        # A last resort: the end of the thread; without a word the engine would wait for it.
        except Exception as error:
            _report(f"{instance.id}", error, channel)
            failed.set()
            channel.inbox.put(Stop())

    threads = [threading.Thread(target=live, args=(one,), name=str(one.id)) for one in instances]
    for thread in threads:
        thread.start()
    by_id = {instance.id: instance for instance in instances}
    while not isinstance(message := channel.inbox.get(), Stop):
        match message:
            case OpenGeneration() | CommitGeneration() | DropGeneration():
                generations.handle(message)
            case Setup() | StorePut():
                pass
            case _:
                by_id[message.instance].post(message)
    for instance in instances:
        instance.stop()
    for thread in threads:
        thread.join()
    generations.close()
    for instance in instances:
        instance.release()
    return 1 if failed.is_set() else 0


def _report(name: str, error: Exception, channel: WorkerChannel) -> None:
    if not isinstance(error, JanusError):
        logger.exception("%s failed", name)
    kind = "" if isinstance(error, JanusError) else f"{type(error).__name__}: "
    caused_by_peer = isinstance(error, ExchangeError) and not isinstance(error, RoutingDivergence)
    channel.send(Failed(name=name, error=f"{kind}{error}", caused_by_peer=caused_by_peer))


def _report_lost(
    instance: InstanceId, channel: WorkerChannel, error: ExchangeError, generation: int
) -> None:
    peers = InstanceId.named_in(getattr(error, "peer", str(error)))
    lost = Failed(
        name=f"{instance}",
        error=f"{error}",
        caused_by_peer=True,
        peers=tuple(peer for peer in dict.fromkeys(peers) if peer != instance),
        generation=generation,
    )
    channel.send(lost)


def _leave_at_once() -> None:
    """The engine is gone without a word."""
    os._exit(3)


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", stream=sys.stderr)
    faulthandler.enable()  # a crash in compiled code says where
    bootstrap = msgspec.json.decode(sys.argv[1], type=Bootstrap)
    die_with(bootstrap.parent_pid)
    status = run(bootstrap)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # all is closed; threads of gloo that still run would abort a slow exit


if __name__ == "__main__":
    main()

"""Starts the processes of a measurement of the exchange, and waits for them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from janus_moe.errors import ServiceError
from janus_moe.profiling.exchange import ExchangeOrder
from janus_moe.profiling.exchange_times import ExchangeTimes
from janus_moe.transport import ExchangeLayout

Start = Callable[..., "subprocess.Popen[Any]"]
"""Like `subprocess.Popen`; another one may start the process elsewhere."""

GRACE_S = 5.0


def orders_of(
    layout: ExchangeLayout, node: int | None, meeting: Path, bind: str, **settings: Any
) -> list[ExchangeOrder]:
    """One per instance that lives on `node` (None: on any), attention first."""
    return [
        ExchangeOrder(
            layout=layout,
            instance=instance,
            meeting=str(meeting),
            bind=bind,
            **settings,
        )
        for instance in layout.membership.instances
        if node is None or layout.membership.host_of(instance) == node
    ]


def run_orders(
    orders: Sequence[tuple[ExchangeOrder, Start]], limit_s: float
) -> ExchangeTimes | None:
    """What attention instance 0 saw, None if it is not among them.

    Raises ServiceError when a process fails or `limit_s` is over. Leaves no process behind.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    deadline = time.monotonic() + limit_s
    with contextlib.ExitStack() as stack:
        processes = []
        for order, start in orders:
            told = msgspec.json.encode(order).decode()
            command = [sys.executable, "-m", "janus_moe.profiling.exchange_process", told]
            process = start(command, stdout=subprocess.PIPE, text=True, env=environment)
            stack.callback(process.wait, GRACE_S)
            stack.callback(process.kill)
            processes.append((order.instance, process))
        found = None
        for instance, process in processes:
            try:
                said = process.communicate(timeout=max(0.1, deadline - time.monotonic()))[0]
            except subprocess.TimeoutExpired:
                raise ServiceError(
                    f"{instance} had not measured the exchange after {limit_s:.0f} s"
                ) from None
            if process.returncode:
                raise ServiceError(f"{instance} ended with status {process.returncode}")
            if said:
                found = msgspec.json.decode(said, type=ExchangeTimes)
    return found

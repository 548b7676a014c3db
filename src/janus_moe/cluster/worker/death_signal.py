"""A worker process asks the kernel to kill it when the process that started it ends.

The lifeline needs a thread of the worker that runs. A worker that is stopped, or whose interpreter
is held by code that never returns, has none; the kernel needs none. This module does not know what
workers do.
"""

from __future__ import annotations

import ctypes
import os
import signal

PR_SET_PDEATHSIG = 1


def die_with(parent_pid: int) -> None:
    """Ties this process to its parent: they end together, whatever state this one is in.

    The kernel acts when the thread that started this process ends, which is the one with the event
    loop and the last of the parent's to end.

    parent_pid: who started this process; if it has ended before the kernel was asked, so does this
        process now.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_PDEATHSIG): {os.strerror(number)}")
    if os.getppid() != parent_pid:
        os._exit(3)

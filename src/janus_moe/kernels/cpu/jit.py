"""How CPU kernels are compiled and entered.

Compiled lazily at the first call and cached on disk, so importing a kernel costs nothing.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numba

WORK_PER_WORKER = 1 << 18  # multiply-adds

# numba's `workqueue` layer aborts the process when two threads enter parallel regions at once.
# One lock for the process is therefore inherent, not state of a kernel.
_REGION = threading.Lock()
_FREE = nullcontext()


def helper(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function that kernels call."""
    compiled: Callable[..., Any] = numba.njit(
        nogil=True, cache=True, error_model="numpy", no_cfunc_wrapper=True
    )(function)
    return compiled


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a kernel whose `prange` loops are parallel; call it inside `parallel_region()`.

    Only those loops: by default numba would also fork threads for each small array expression.
    Keep numpy calls other than `np.empty` in helpers, they would inherit the parallel compiler.
    """
    automatic = ("comprehension", "reduction", "inplace_binop", "setitem", "numpy", "stencil")
    parallel = {**dict.fromkeys((*automatic, "fusion"), False), "prange": True}
    compiled: Callable[..., Any] = numba.njit(
        parallel=parallel, nogil=True, cache=True, error_model="numpy", no_cfunc_wrapper=True
    )(function)
    return compiled


def num_workers(multiply_adds: int) -> int:
    """Threads that a kernel should use: as many as numba may, but one for each WORK_PER_WORKER.

    Waking a sleeping thread takes about as long as that much work that is bound by memory. Results
    never depend on this number.
    """
    wanted = multiply_adds // WORK_PER_WORKER
    return 1 if wanted <= 1 else max(1, min(int(numba.get_num_threads()), wanted))


@contextmanager
def at_most(workers: int) -> Iterator[None]:
    """Parallel loops of this thread wake no more threads than so many."""
    available = numba.get_num_threads()
    if workers == available:
        yield
        return
    numba.set_num_threads(workers)
    try:
        yield
    finally:
        numba.set_num_threads(available)


def _layer_is_thread_safe() -> bool:
    try:
        return bool(numba.threading_layer() != "workqueue")
    except ValueError:  # no parallel region has run yet, so the layer is not chosen
        return False


def parallel_region() -> AbstractContextManager[object]:
    """Enter a kernel from any thread: one at a time unless the threading layer allows more."""
    return _FREE if _layer_is_thread_safe() else _REGION

"""The decorator of functions that numba compiles, for loops over integers that Python is slow at.

What a compiled function does is its own module's business; this one only fixes how it is compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as machine code: compiled at its first call, kept on disk, without the GIL.

    The file on disk is renewed when the function's own file changes. A change of a function or a
    type in another file that it uses goes unnoticed, so change both.
    """
    result: Callable[..., Any] = numba.njit(nogil=True, cache=True)(function)
    return result

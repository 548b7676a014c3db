"""Types of numbers that may be arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from janus_moe.spec import Numbers

__all__ = ["Array", "Bools", "Ints", "Numbers"]

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

"""Types of numbers that may be arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Numbers = float | NDArray[Any]
"""A number, or an array of numbers that broadcasts against the others."""

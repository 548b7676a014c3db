"""Lets tests import `tests.checkpoints` however pytest was started; tiny models want one thread."""

import sys
from pathlib import Path

import numba
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
torch.set_num_threads(1)
numba.set_num_threads(1)

"""Tiny models want one thread: more only wait for each other."""

import numba
import torch

torch.set_num_threads(1)
numba.set_num_threads(1)

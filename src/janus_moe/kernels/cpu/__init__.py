"""Shared parts of the CPU kernels: register tiles, compilation, the parallel-region lock."""

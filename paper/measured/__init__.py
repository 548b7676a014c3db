"""Pictures in docs/figures of what benchmarks measured.

    python -m paper.measured [--only a_max cluster] [--out docs/figures]     (needs matplotlib)

Each is drawn from committed results; nothing is measured here.
"""

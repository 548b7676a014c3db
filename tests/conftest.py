"""Tiers of the suite; docs/testing.md says what each is for.

slow         `make test-all`: what takes long and has a faster neighbour that claims the same
integration  `make test`, not `make check`: services, worker processes, sockets, profiling runs
the rest     `make check`: within a minute
"""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parent
INTEGRATION = ("e2e", "profiling", "packaging")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        # What runs in every run is listed where combinations of parameters are too many for marks.
        if isinstance(item, pytest.Function):
            quick = getattr(item.module, "QUICK", {}).get(item.originalname)
            if quick is not None and item.callspec.id not in quick:
                item.add_marker(pytest.mark.slow)
        if item.path.relative_to(ROOT).parts[0] in INTEGRATION:
            item.add_marker(pytest.mark.integration)

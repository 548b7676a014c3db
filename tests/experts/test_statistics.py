"""Claims about what an expert instance reports of the routing that it saw."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from janus_moe.experts import routing_observer as module
from janus_moe.experts.routing_observer import RoutingObserver
from janus_moe.messages import ExpertLoad

EXPERTS, TOKENS = 8, 32


def test_a_report_forgets_what_came_before_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REPORT_EVERY_S", 0.0)
    reports: list[ExpertLoad] = []
    observer = RoutingObserver(1, EXPERTS, reports.append)
    rng = np.random.default_rng(0)

    def serve(experts: range, num_steps: int) -> None:
        for _ in range(num_steps):
            ids = rng.choice(experts, (TOKENS, 1)).astype(np.int32)
            observer.batch(0, torch.from_numpy(ids))
            observer.end_of_step()

    serve(range(4), 300)
    assert len(reports) == 300 and sum(reports[-1].tokens[0]) == 300 * TOKENS
    serve(range(4, 8), 10)
    assert sum(reports[-1].tokens[0][:4]) == 300 * TOKENS, "10 batches say too little"
    assert not any(report.changed for report in reports)
    serve(range(4, 8), 60)
    assert reports[-1].tokens[0][:4] == (0, 0, 0, 0)
    assert any(report.changed for report in reports)
    serve(range(4, 8), 170)
    assert reports[-1].tokens[0][:4] == (0, 0, 0, 0)
    assert sum(reports[-1].tokens[0]) >= 128 * TOKENS


def test_a_full_bucket_is_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REPORT_EVERY_S", 3600.0)
    reports: list[ExpertLoad] = []
    observer = RoutingObserver(1, EXPERTS, reports.append)
    monkeypatch.setattr(observer, "_reported_at", time.monotonic())
    for _ in range(3 * module.BUCKET_BATCHES - 1):
        observer.batch(0, torch.zeros(1, 1, dtype=torch.int32))
        observer.end_of_step()
    assert [sum(report.num_batches) for report in reports] == [
        module.BUCKET_BATCHES,
        2 * module.BUCKET_BATCHES,
    ]

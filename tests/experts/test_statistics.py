"""Claims about what an expert instance reports of the routing that it saw."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch

from janus_moe.experts import instance as module
from janus_moe.experts.instance import ExpertInstance
from janus_moe.messages import ExpertLoad
from janus_moe.policy.placement import initial_placement
from janus_moe.spec import InstanceId
from janus_moe.transport import Ticket, Work

ID = InstanceId(pool="expert", number=0)

LAYER, EXPERTS, TOKENS = 3, 8, 32


class HiddenAreIds:
    """A model whose router reads the experts from the hidden states, and whose experts add 0."""

    def route(self, layer: int, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return hidden.int(), torch.ones_like(hidden)

    def compute(self, layer: int, hidden: torch.Tensor, *_: Any) -> torch.Tensor:
        return torch.zeros_like(hidden)


class OnePort:
    """Brings the same exchange again and again, under new step numbers."""

    def __init__(self) -> None:
        self.step, self.ids = 0, torch.empty(0)

    def accept(self) -> Work:
        self.step += 1
        return Work(Ticket(0, self.step, LAYER), self.ids.float(), (len(self.ids),))

    def reply(self, *_: Any) -> None:
        pass


def test_a_report_forgets_what_came_before_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REPORT_EVERY_S", 0.0)
    reports: list[ExpertLoad] = []
    placement = initial_placement(1, EXPERTS, 2, 0)
    model: Any = HiddenAreIds()
    instance = ExpertInstance(ID, 0, model, placement, "exact", (LAYER,), on_load=reports.append)
    port: Any = OnePort()
    rng = np.random.default_rng(0)

    def serve(experts: range, num_steps: int) -> None:
        for _ in range(num_steps):
            port.ids = torch.from_numpy(rng.choice(experts, (TOKENS, 1)))
            instance.serve_once(port)

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
    model: Any = HiddenAreIds()
    placement = initial_placement(1, EXPERTS, 2, 0)
    instance = ExpertInstance(ID, 0, model, placement, "exact", (LAYER,), on_load=reports.append)
    monkeypatch.setattr(instance, "_reported_at", time.monotonic())
    port: Any = OnePort()
    port.ids = torch.zeros(1, 1)
    for _ in range(3 * module.BUCKET_BATCHES - 1):
        instance.serve_once(port)
    assert [sum(report.num_batches) for report in reports] == [
        module.BUCKET_BATCHES,
        2 * module.BUCKET_BATCHES,
    ]

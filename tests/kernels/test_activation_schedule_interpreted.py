"""The scheduling kernel in Triton's interpreter: its answers equal the reference's with ==.

Triton decides at import whether it interprets, so the tests here run in a pytest of their own. The
interpreter plays one program after another and knows no threads: it shows that the arithmetic is
right, not that a GPU needs no more barriers.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from tests.experts.build import next_tables
from tests.kernels.test_activation_schedule import (
    assert_equals_reference,
    needs_triton,
    random_ids,
    random_tables,
)

from janus_moe.experts.scheduling import (
    DeviceDigest,
    DeviceScheduler,
    Schedulers,
    physical_tables,
)
from janus_moe.kernels.activation_schedule import (
    ActivationScheduleKernel,
    DevicePolicy,
    ReplicaTables,
    kernel,
)
from janus_moe.policy.activation import schedule
from janus_moe.policy.placement import place_experts
from janus_moe.transport import Ticket, read_metadata

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

if not INTERPRETED:

    @pytest.mark.slow
    @needs_triton
    def test_in_the_interpreter() -> None:
        command = [sys.executable, "-m", "pytest", __file__, "-p", "no:cacheprovider"]
        environment = os.environ | {"TRITON_INTERPRET": "1"}
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr

else:

    @pytest.fixture(params=["one launch", "three launches"], autouse=True)
    def launches(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        """Both ways for any number of ids, with several blocks."""
        monkeypatch.setattr(kernel, "BLOCK", 16)
        limit = 2**31 if request.param == "one launch" else 0
        monkeypatch.setattr(kernel, "IDS_IN_ONE_LAUNCH", limit)

    @pytest.fixture(autouse=True)
    def operations_are_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
        """By the interpreter, for a launch and all device functions that it calls: doing it again
        for each of them takes a third of the time."""
        interpreter: Any = importlib.import_module("triton.runtime.interpreter")
        look_up, found = interpreter._patch_lang, dict[bool, Any]()

        def look_up_once(function: Any) -> Any:
            of_triton = function.__module__.startswith("triton.")  # names them differently
            if of_triton in found:
                return found[of_triton]
            scope = found[of_triton] = look_up(function)
            undo = scope.restore

            def restore() -> None:
                found.clear()
                undo()

            scope.restore = restore
            return scope

        monkeypatch.setattr(interpreter, "_patch_lang", look_up_once)

    def check(
        tables: ReplicaTables, policy: DevicePolicy, ids: torch.Tensor, instance: int = 0
    ) -> None:
        made = ActivationScheduleKernel(tables, policy, "cpu")
        assert_equals_reference(made, tables, policy, ids, instance)

    def ids_of(*rows: list[int]) -> torch.Tensor:
        return torch.tensor(rows, dtype=torch.int32)

    @pytest.mark.parametrize(("policy", "layouts"), [("exact", 40), ("aebs", 15)])
    def test_kernel_vs_reference(policy: DevicePolicy, layouts: int) -> None:
        """On many layouts; often enough the greedy answer has to be repaired."""
        rng = np.random.default_rng(0)
        repaired = 0
        for _ in range(layouts):
            experts, instances = int(rng.integers(1, 70)), int(rng.integers(1, 12))
            tables = random_tables(rng, experts, instances)
            made = ActivationScheduleKernel(tables, policy, "cpu")
            for _ in range(2):  # the second one must find nothing of the first
                ids = random_ids(rng, experts, int(rng.integers(0, 16)), int(rng.integers(1, 5)))
                instance = int(rng.integers(instances))
                assert_equals_reference(made, tables, policy, ids, instance)
                greedy = schedule("aebs", ids.numpy(), tables.layout)
                exact = schedule("exact", ids.numpy(), tables.layout)
                repaired += greedy.activated.max() > exact.activated.max()
        assert repaired >= layouts / 10

    @pytest.mark.parametrize("num_instances", [3, 8, 40])
    def test_a_path_across_all_instances_is_found(num_instances: int) -> None:
        """A single on each, expert i between i and i + 1, and one more between 0 and 1."""
        chain = range(num_instances, 2 * num_instances - 1)
        slots = [[i] for i in range(num_instances)]
        for instance, expert in enumerate(chain):
            slots[instance].append(expert)
            slots[instance + 1].append(expert)
        slots[0].append(chain.stop)
        slots[1].append(chain.stop)
        tables = ReplicaTables.from_slots(slots, chain.stop + 1)
        ids = torch.arange(chain.stop + 1, dtype=torch.int32)[:, None]
        check(tables, "exact", ids)
        assert schedule("exact", ids.numpy(), tables.layout).activated.max() == 2
        assert schedule("aebs", ids.numpy(), tables.layout).activated.max() == 3

    @pytest.mark.parametrize("policy", ["exact", "aebs"])
    def test_the_largest_layer(policy: DevicePolicy) -> None:
        rng = np.random.default_rng(1)
        tables = random_tables(rng, 1024, 64)
        check(tables, policy, random_ids(rng, 1024, 20, 8), instance=63)

    def test_nothing_to_schedule() -> None:
        tables = ReplicaTables.from_slots([[0, 1], [1, 2]], 3)
        check(tables, "exact", torch.empty(0, 4, dtype=torch.int32))
        check(tables, "exact", torch.empty(4, 0, dtype=torch.int32))
        check(tables, "exact", torch.full((5, 4), -1, dtype=torch.int32))

    def test_one_instance_one_expert_and_replicas_everywhere() -> None:
        check(ReplicaTables.from_slots([[0]], 1), "exact", ids_of([0]))
        check(ReplicaTables.from_slots([[2, 0, 1]], 3), "exact", ids_of([0, 2], [-1, 2]))
        everywhere = ReplicaTables.from_slots([[0, 1, 2, 3, 4]] * 3, 5)
        for instance in range(3):
            check(everywhere, "exact", ids_of([0, 1], [3, 4], [4, -1]), instance)

    def test_an_instance_without_slots_in_the_layer() -> None:
        tables = ReplicaTables.from_slots([[0, 1], [], [2, 1], []], 3)
        for instance in range(4):
            check(tables, "exact", ids_of([0, 1], [2, 0]), instance)

    def test_words_at_their_edges() -> None:
        """Experts 31 and 32 are the last and the first bit of a word, 63 and 95 are last ones."""
        tables = ReplicaTables.from_slots([list(range(96)), list(range(30, 96))], 96)
        check(tables, "exact", ids_of([31, 32], [63, 95], [0, 64]), instance=1)

    def test_the_order_of_tokens_changes_nothing_but_the_order() -> None:
        rng = np.random.default_rng(2)
        tables = random_tables(rng, 48, 6)
        made = ActivationScheduleKernel(tables, "exact", "cpu")
        ids = random_ids(rng, 48, 20, 4)
        first = [tensor.clone() for tensor in made.schedule(ids, 2)]
        for _ in range(3):
            order = torch.from_numpy(rng.permutation(len(ids)))
            again = made.schedule(ids[order], 2)
            for name, one, other in zip(again._fields, first, again, strict=True):
                moved = name in ("slot_ids", "replica_ids")
                assert torch.equal(one[order] if moved else one, other), name

    @pytest.mark.parametrize("policy", ["exact", "aebs"])
    def test_an_instance_gets_the_hosts_slots_in_every_epoch(policy: DevicePolicy) -> None:
        """Through the schedulers that a service makes: physical slots with gaps, other replicas."""
        rng, digest = np.random.default_rng(3), DeviceDigest("cpu")
        table = np.full(40, -1, np.int32)
        for epoch in range(3):
            placement = place_experts("janus", rng.random((1, 40)), [13, 15, 12, 14], epoch=epoch)
            [table], _ = next_tables([table], [placement.slots[0][1]], 60)
            host = Schedulers(1, policy).make(placement, 0, table)
            tables = physical_tables(placement, 0, 1, table)
            made = ActivationScheduleKernel(tables, policy, "cpu")
            device = DeviceScheduler(made, 1, epoch, digest)
            for tokens in (0, 9):
                ids = random_ids(rng, 40, tokens, 4)
                one, other = host.schedule(ids), device.schedule(ids)
                assert torch.equal(one.slot_ids, other.slot_ids)
                [[metadata]] = read_metadata([Ticket(epoch, 0, 0)], [(other.metadata,)])
                assert metadata.activated == one.metadata.activated

    def test_ids_out_of_range_are_told_and_ignored_and_forgotten() -> None:
        tables = ReplicaTables.from_slots([[0, 1], [1, 2]], 3)
        made = ActivationScheduleKernel(tables, "exact", "cpu")
        limits = torch.iinfo(torch.int32)
        answer = made.schedule(ids_of([0, 3], [limits.max, limits.min], [-2, 2]), 0)
        assert answer.invalid.tolist() == [1]
        assert answer.instance_of_expert.tolist() == [0, -1, 1]
        assert answer.replica_ids.tolist() == [[0, -1], [-1, -1], [-1, 3]]
        assert_equals_reference(made, tables, "exact", ids_of([0, 1], [2, -1]), 0)

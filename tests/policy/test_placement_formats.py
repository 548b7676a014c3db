"""EPLB's tensors and call, SGLang's file: published values, round trips, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from janus_moe.errors import ConfigError
from janus_moe.policy.activation import LayerLayout, Scheduler
from janus_moe.policy.placement import (
    from_eplb,
    initial_placement,
    read_sglang,
    rebalance_experts,
    to_eplb,
    write_sglang,
)

# The example of EPLB's own documentation: 2 layers of 12 experts, 16 replicas, 4 groups, 2 nodes
# of 4 GPUs each.
WEIGHT = [
    [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
    [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
]
PHY2LOG = [
    [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
    [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
]


def test_eplb_gives_its_published_example() -> None:
    tensors = rebalance_experts(np.array(WEIGHT), 16, 4, 2, 8, method="eplb")
    assert tensors.phy2log.tolist() == PHY2LOG
    assert tensors.logcnt[0].tolist() == [1, 2, 1, 1, 2, 2, 1, 1, 1, 1, 2, 1]
    assert tensors.log2phy.shape == (2, 12, 2) and tensors.log2phy[0, 5].tolist() == [0, 2]
    assert tensors.log2phy[0, 6].tolist() == [1, -1]


def test_groups_that_do_not_divide_among_nodes_are_balanced_globally() -> None:
    weight = np.random.default_rng(0).random((3, 12))
    uneven = rebalance_experts(weight, 16, 3, 2, 8, method="eplb")
    whole = rebalance_experts(weight, 16, 1, 1, 8, method="eplb")
    assert uneven.phy2log.tolist() == whole.phy2log.tolist()


@pytest.mark.parametrize("method", ["janus", "eplb"])
def test_tensors_agree_with_each_other(method: str) -> None:
    weight = np.random.default_rng(0).zipf(1.5, (3, 32)).clip(max=500)
    phy2log, log2phy, logcnt = rebalance_experts(weight, 40, 1, 1, 8, method=method)  # type: ignore[arg-type]
    assert phy2log.shape == (3, 40) and logcnt.sum(axis=1).tolist() == [40] * 3
    for layer in range(3):
        for expert in range(32):
            copies = np.flatnonzero(phy2log[layer] == expert).tolist()
            assert log2phy[layer, expert, : len(copies)].tolist() == copies
            assert (log2phy[layer, expert, len(copies) :] == -1).all()
            assert logcnt[layer, expert] == len(copies) >= 1


def test_the_default_places_for_activation_scheduling() -> None:
    weight = np.random.default_rng(1).zipf(1.5, (1, 64)).clip(max=500)
    ours = rebalance_experts(weight, 80, 1, 1, 8)
    assert ours.logcnt.max() == 2
    placed = from_eplb(ours.phy2log, 8)
    assert to_eplb(placed).phy2log.tolist() == ours.phy2log.tolist()


def test_torch_tensors_are_answered_with_torch_tensors() -> None:
    answer = rebalance_experts(
        torch.tensor(WEIGHT, dtype=torch.float32), 16, 4, 2, 8, method="eplb"
    )
    assert all(isinstance(t, torch.Tensor) and t.dtype == torch.int64 for t in answer)
    assert answer.phy2log.tolist() == PHY2LOG
    assert from_eplb(answer.phy2log, 8).num_experts == 12


def test_physical_ids_can_be_what_the_scheduler_writes() -> None:
    placed = initial_placement(1, 16, 4, 4)
    tensors = to_eplb(placed)
    layout = placed.layer_layout(0)
    width = layout.holders.shape[1]
    assert isinstance(layout, LayerLayout)
    scheduler = Scheduler(layout, labels=tensors.log2phy[0, :, :width])
    ids = np.arange(16, dtype=np.int32).reshape(4, 4)
    physical = scheduler.rewrite(ids).labels
    assert (tensors.phy2log[0][physical] == ids).all()


def test_a_second_copy_on_one_gpu_is_left_out() -> None:
    placed = from_eplb(np.array([[0, 0, 1, 2]]), 2)
    assert placed.slots == (((0,), (1, 2)),)


def test_uneven_slots_have_no_eplb_form() -> None:
    with pytest.raises(ConfigError, match="hold 5 to 6 experts"):
        to_eplb(initial_placement(1, 16, 3))


def test_shapes_that_eplb_cannot_serve_name_the_numbers() -> None:
    weight = np.ones((1, 12))
    with pytest.raises(ConfigError, match=r"14 replicas must be a multiple of 4 GPUs.*take 16"):
        rebalance_experts(weight, 14, 1, 1, 4)
    with pytest.raises(ConfigError, match="8 replicas cannot hold 12 experts"):
        rebalance_experts(weight, 8, 1, 1, 4, method="eplb")
    with pytest.raises(ConfigError, match="at most 24"):
        rebalance_experts(weight, 26, 1, 1, 2)
    with pytest.raises(ConfigError, match="5 replicas per layer do not divide among 2 GPUs"):
        from_eplb(np.arange(5)[None], 2)
    with pytest.raises(ConfigError, match=r"integers \[layers, replicas\], got float64"):
        from_eplb(np.ones((1, 4)), 2)
    with pytest.raises(ConfigError, match="janus or eplb, got 'other'"):
        rebalance_experts(weight, 12, 1, 1, 4, method="other")  # type: ignore[arg-type]


def test_sglang_files_make_the_round_trip(tmp_path: Path) -> None:
    placed = initial_placement(3, 16, 4, 4)
    path = tmp_path / "location.json"
    write_sglang(placed, path)
    assert list(json.loads(path.read_text())) == ["physical_to_logical_map"]
    assert read_sglang(path, 4) == placed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "nothing else, found list"),
        ('{"logical_count": []}', r"found \['logical_count'\]"),
        ('{"physical_to_logical_map": [[0, 1], [0]]}', "rows of different lengths"),
        ('{"physical_to_logical_map": [["a"]]}', r"integers \[layers, replicas\]"),
        ('{"physical_to_logical_map": []}', r"integers \[layers, replicas\]"),
        ('{"physical_to_logical_map": [[0, 2]]}', "the first is expert 1"),
        ('{"physical_to_logical_map": [[0, -1]]}', "holds expert -1"),
    ],
)
def test_malformed_sglang_files_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "location.json"
    with pytest.raises(ConfigError, match=r"location\.json cannot be read: No such file"):
        read_sglang(path, 1)
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_sglang(path, 1)

"""Claims about recording beside serving: when the file is written, and what cannot go wrong."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import numpy as np
import pytest

from janus_moe.experts.recording import FIRST_WRITE_TOKENS, RoutingRecorder
from janus_moe.policy.routing_trace import RoutingTrace, partial_path

LAYERS, EXPERTS, TOP_K = 2, 16, 3


def step(recorder: RoutingRecorder, num_tokens: int, seed: int = 0) -> list[np.ndarray]:
    """One step's batch through all layers, with random routing."""
    rng = np.random.default_rng(seed)
    batch = [
        rng.random((num_tokens, EXPERTS)).argsort(axis=1)[:, :TOP_K].astype(np.int32)
        for _ in range(LAYERS)
    ]
    for layer, ids in enumerate(batch):
        recorder.record(layer, ids)
    recorder.end_of_step()
    return batch


def load_when_written(path: Path, num_tokens: int) -> RoutingTrace:
    deadline = time.monotonic() + 10
    while not path.exists() or RoutingTrace.load(path).num_tokens < num_tokens:
        assert time.monotonic() < deadline, f"{path} never got {num_tokens} tokens"
        time.sleep(0.002)
    return RoutingTrace.load(path)


def test_it_is_written_as_it_doubles_so_that_a_crash_loses_the_rest_only(tmp_path: Path) -> None:
    path = tmp_path / "routing.jrt"
    recorder = RoutingRecorder(path, LAYERS, EXPERTS, 10 * FIRST_WRITE_TOKENS)
    batches = [step(recorder, FIRST_WRITE_TOKENS - 1, seed=0)]
    assert not path.exists()
    batches.append(step(recorder, 2, seed=1))
    trace = load_when_written(path, FIRST_WRITE_TOKENS + 1)
    assert trace.batch_sizes.tolist() == [FIRST_WRITE_TOKENS - 1, 2]
    batches.append(step(recorder, 7, seed=2))
    assert RoutingTrace.load(path).num_tokens == FIRST_WRITE_TOKENS + 1, "not every step"
    batches.append(step(recorder, FIRST_WRITE_TOKENS, seed=3))
    load_when_written(path, 2 * FIRST_WRITE_TOKENS)
    batches.append(step(recorder, 3, seed=4))
    recorder.close()
    trace = RoutingTrace.load(path)
    for layer in range(LAYERS):
        own = [batch[layer] for batch in batches]
        assert all((a == b).all() for a, b in zip(trace.batches(layer), own, strict=True))


def test_a_step_that_was_dropped_is_not_recorded(tmp_path: Path) -> None:
    path = tmp_path / "routing.jrt"
    recorder = RoutingRecorder(path, LAYERS, EXPERTS, 100)
    recorder.forget_unfinished()
    whole = [step(recorder, 5, seed=0)]
    for count in (4, 30):
        recorder.record(0, step(RoutingRecorder(path, LAYERS, EXPERTS, 100), count, seed=9)[0])
        recorder.forget_unfinished()
    whole += [step(recorder, 7, seed=1), step(recorder, 3, seed=2)]
    recorder.close()
    trace = RoutingTrace.load(path)
    assert trace.batch_sizes.tolist() == [5, 7, 3]
    for layer in range(LAYERS):
        own = [batch[layer] for batch in whole]
        assert all((a == b).all() for a, b in zip(trace.batches(layer), own, strict=True))


def test_the_bound_cuts_the_last_batch_and_nothing_comes_after(tmp_path: Path) -> None:
    path = tmp_path / "routing.jrt"
    recorder = RoutingRecorder(path, LAYERS, EXPERTS, max_tokens=10)
    step(recorder, 8)
    batch = step(recorder, 5)
    trace = load_when_written(path, 10)
    assert trace.batch_sizes.tolist() == [8, 2]
    assert (trace.ids[1, 8:] == batch[1][:2]).all()
    step(recorder, 4)
    recorder.close()
    assert RoutingTrace.load(path).batch_sizes.tolist() == [8, 2]


def test_half_a_step_is_not_written(tmp_path: Path) -> None:
    """A service may stop between two layers."""
    path = tmp_path / "routing.jrt"
    recorder = RoutingRecorder(path, LAYERS, EXPERTS, max_tokens=100)
    step(recorder, 8)
    recorder.record(0, np.array([[1, 2, 3]], np.int32))
    recorder.close()
    assert RoutingTrace.load(path).batch_sizes.tolist() == [8]


def test_a_full_disk_is_said_and_does_not_end_the_service(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "gone" / "routing.jrt"
    with caplog.at_level(logging.WARNING):
        recorder = RoutingRecorder(path, LAYERS, EXPERTS, max_tokens=10)
        step(recorder, 8)
        recorder.close()
        step(recorder, 8)
    assert caplog.text.count("could not be written") == 1 and str(path) in caplog.text


def test_nothing_served_writes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "routing.jrt"
    RoutingTrace(EXPERTS, np.zeros((1, 1, 1), np.uint8), np.array([1])).save(path)
    RoutingRecorder(path, LAYERS, EXPERTS, max_tokens=10).close()
    assert RoutingTrace.load(path).num_tokens == 1
    assert "no routing was recorded" in caplog.text
    assert not partial_path(path).exists()

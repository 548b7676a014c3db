"""Routing traces: record, save, load, replay; a damaged file is refused and says how."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from janus_moe.errors import ConfigError
from janus_moe.policy.activation import Scheduler
from janus_moe.policy.placement import initial_placement
from janus_moe.policy.replay import replay
from janus_moe.policy.routing_trace import PREFIX, RoutingTrace, TraceRecorder


def recorded(num_experts: int = 16, seed: int = 0) -> RoutingTrace:
    rng = np.random.default_rng(seed)
    recorder = TraceRecorder(2, num_experts)
    for size in (3, 0, 5):
        for layer in (1, 0):
            ids = rng.random((size, num_experts)).argsort(axis=1)[:, :4].astype(np.int32)
            recorder.record(layer, np.concatenate([ids, np.full((1, 4), -1, np.int32)]))
    return recorder.trace()


@pytest.mark.parametrize(("experts", "width"), [(16, 1), (256, 1), (257, 2), (1024, 2)])
def test_a_file_gives_back_what_was_recorded(tmp_path: Path, experts: int, width: int) -> None:
    trace = recorded(experts)
    path = tmp_path / "trace.bin"
    trace.save(path)
    assert path.stat().st_size == 48 + 3 * 4 + 2 * 8 * 4 * width
    again = RoutingTrace.load(path)
    assert again.num_experts == experts and again.ids.dtype == trace.ids.dtype
    assert (again.ids == trace.ids).all() and again.batch_sizes.tolist() == [3, 0, 5]
    again.save(tmp_path / "again.bin")
    assert (tmp_path / "again.bin").read_bytes() == path.read_bytes()


def test_batches_samples_and_halves() -> None:
    trace = recorded()
    assert (trace.num_layers, trace.num_tokens, trace.top_k) == (2, 8, 4)
    batches = list(trace.batches(1))
    assert [batch.shape for batch in batches] == [(3, 4), (0, 4), (5, 4)]
    assert (np.concatenate(batches) == trace.ids[1]).all() and batches[0].dtype == np.int32
    sample = trace.sample(0, 100, np.random.default_rng(0))
    assert {tuple(row) for row in sample} == {tuple(row) for row in trace.ids[0].astype(int)}
    first, rest = trace.split(1)
    assert first.batch_sizes.tolist() == [3] and rest.batch_sizes.tolist() == [0, 5]
    assert (np.concatenate([first.ids, rest.ids], axis=1) == trace.ids).all()


def test_replay_is_the_scheduler_on_every_batch() -> None:
    trace, placement = recorded(), initial_placement(2, 16, 4, 4)
    for policy in ("exact", "token-split"):
        answer = replay(trace.batches(1), placement.layer_layout(1), policy)
        scheduler = Scheduler(placement.layer_layout(1), policy)
        expected = [scheduler.rewrite(ids).activated.tolist() for ids in trace.batches(1)]
        assert answer.max_activated.tolist() == [max(counts) for counts in expected]
        assert answer.activated.tolist() == [sum(counts) for counts in expected]
    assert replay(trace.batches(0), placement.layer_layout(0), "exact").num_optimal == 3


def damaged(path: Path, offset: int, content: bytes, mend: bool) -> None:
    data = bytearray(path.read_bytes())
    data[offset : offset + len(content)] = content
    if mend:
        data[12:16] = struct.pack("<I", zlib.crc32(bytes(data[PREFIX.size :])))
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("offset", "content", "mend", "message"),
    [
        (0, b"GGUF", False, "is not a routing trace: its first bytes are b'GGUF"),
        (8, b"\x02", False, "of version 2; this release reads 1"),
        (16, b"\x03", False, "124 bytes, but 3 layers"),
        (20, b"\x00", False, "says 0 experts"),
        (24, b"\x08", False, "top-8"),
        (32, b"\xff" * 8, False, "18446744073709551615 tokens"),
        (60, b"\x07", False, "checksum does not match"),
        (60, b"\x10", True, "uses expert 16, but ids run from 0 to 15"),
        (48, b"\x04", True, "batches sum up to 9 tokens, but there are 8"),
    ],
)
def test_damaged_files_are_refused(
    tmp_path: Path, offset: int, content: bytes, mend: bool, message: str
) -> None:
    path = tmp_path / "trace.bin"
    recorded().save(path)
    assert path.stat().st_size == 124
    damaged(path, offset, content, mend)
    with pytest.raises(ConfigError, match=message):
        RoutingTrace.load(path)


def test_no_single_damaged_byte_goes_unnoticed(tmp_path: Path) -> None:
    path = tmp_path / "trace.bin"
    recorded().save(path)
    whole = path.read_bytes()
    for offset in range(len(whole)):
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 0x11]) + whole[offset + 1 :])
        with pytest.raises(ConfigError):
            RoutingTrace.load(path)


def test_short_and_long_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.bin"
    with pytest.raises(ConfigError, match=r"trace\.bin cannot be read: No such file"):
        RoutingTrace.load(path)
    recorded().save(path)
    whole = path.read_bytes()
    for wrong in (b"", whole[:40], whole[:-1], whole + b"\0"):
        path.write_bytes(wrong)
        with pytest.raises(ConfigError, match=r"not a routing trace|cut short or damaged"):
            RoutingTrace.load(path)


def test_recordings_that_do_not_fit_together_are_refused() -> None:
    recorder = TraceRecorder(2, 8)
    recorder.record(0, np.array([[1, 2]], np.int32))
    with pytest.raises(ConfigError, match="layer 1 recorded 0 batches with 0 tokens, layer 0 1"):
        recorder.trace()
    with pytest.raises(ValueError, match="layer 0 must run from 0 to 7; got 1 to 8"):
        recorder.record(0, np.array([[1, 8]], np.int32))
    with pytest.raises(ConfigError, match="must be uint8"):
        RoutingTrace(8, np.zeros((1, 1, 1), np.uint16), np.array([1]))
    with pytest.raises(ConfigError, match="70000 experts"):
        TraceRecorder(1, 70_000)

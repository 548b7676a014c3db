"""Claims about traces: every row is in order, what belongs together is there, messages have both
ends and the right size."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.checkpoints import make_checkpoint, write_tokenizer
from tests.e2e.harness import serving_in_threads

from janus_moe.cluster.tracing import InstanceTrace, trace_decode
from janus_moe.errors import ConfigError
from janus_moe.profiling.chrome_trace import chrome_trace
from janus_moe.transport.exchange_plans import Topology, egate_plan

STEPS, BATCH, MOE_LAYERS = 3, 4, 3
SETTINGS: dict[str, Any] = dict(  # noqa: C408
    attention_instances=2,
    expert_instances=2,
    threads=1,
    max_num_batched_tokens=64,
    max_model_len=64,
    kv_cache_memory_bytes=2**22,
    rebalance_spare_slots=0,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("traced") / "model"
    make_checkpoint(folder, "qwen3_moe", seed=3, tie_word_embeddings=False)
    write_tokenizer(folder)
    return folder


@pytest.mark.parametrize("transport", ["loopback", "shm", "gloo"])
async def test_a_trace_shows_every_exchange_of_its_steps_in_order(
    folder: Path, transport: str
) -> None:
    async with serving_in_threads(folder, transport=transport, **SETTINGS) as service:
        traces = await trace_decode(service.engine, service.tracer, BATCH, 5, STEPS)
        again = await trace_decode(service.engine, service.tracer, BATCH, 5, 1)
    assert chrome_trace(again, 1)["traceEvents"]
    events = chrome_trace(traces, STEPS)["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert list(names.values()) == ["attention 0", "attention 1", "expert 0", "expert 1"]
    assert all(event["dur"] > 0 and event["ts"] >= 0 for event in spans)
    rows = defaultdict(list)
    for event in spans:
        rows[event["pid"], event["tid"]].append(event)
    for row in rows.values():
        row.sort(key=lambda event: event["ts"])
        for before, after in itertools.pairwise(row):
            assert before["ts"] + before["dur"] <= after["ts"] + 1e-3  # a picosecond of rounding
    check_work(spans, names)
    if transport == "gloo":
        check_messages(spans, names)
    else:
        assert not any(event["cat"] == "message" for event in spans)


def check_work(spans: list[dict[str, Any]], names: dict[int, str]) -> None:
    """Every exchange of every step is there once on each instance, with all its parts."""
    parts: dict[str, Counter[tuple[int, str, int, int]]] = defaultdict(Counter)
    for event in spans:
        if event["cat"] == "work" and "layer" in event["args"]:
            where = (event["pid"], event["args"]["step"], event["args"]["layer"])
            parts[event["name"]][where[0], names[where[0]], where[1], where[2]] += 1
    steps = {step for _, _, step, _ in parts["dispatch"]}
    assert len(steps) == STEPS and max(steps) - min(steps) == STEPS - 1
    for name, pool in (("dispatch", "attention"), ("route", "expert")):
        assert set(parts[name].values()) == {1}
        assert len(parts[name]) == 2 * STEPS * MOE_LAYERS
        assert all(instance.startswith(pool) for _, instance, _, _ in parts[name])
    for name in ("attention", "combine"):
        assert parts[name] == parts["dispatch"]
    for name in ("schedule", "experts", "reply"):
        assert parts[name] == parts["route"]


def check_messages(spans: list[dict[str, Any]], names: dict[int, str]) -> None:
    """All messages of the plan, each at both ends; those of the last exchange may be cut off."""
    ends: dict[str, Counter[tuple[str, str, str, int]]] = {"sent": Counter(), "received": Counter()}
    total = 0
    for event in spans:
        if event["cat"] == "message":
            ends[event["args"]["way"]][
                event["name"], names[event["pid"]], event["args"]["peer"], event["args"]["bytes"]
            ] += 1
            total += 1
    turned = Counter({(n, b, a, size): c for (n, a, b, size), c in ends["received"].items()})
    assert ends["sent"] == turned
    plan = egate_plan("1pc", Topology((0, 0), (0, 0)), (BATCH // 2,) * 2)
    whole = 2 * STEPS * MOE_LAYERS * (len(plan.dispatches) + len(plan.replies))
    assert whole - 2 * (len(plan.dispatches) + len(plan.replies)) <= total <= whole


def last_step(traces: list[InstanceTrace]) -> int:
    """The only step that a trace of one step shows."""
    [step] = {e["args"]["step"] for e in chrome_trace(traces, 1)["traceEvents"] if e["ph"] == "X"}
    return int(step)


def without_last_reply(traces: list[InstanceTrace]) -> list[InstanceTrace]:
    """As if recording had ended after an expert's last reply and before its mark."""
    *others, expert = traces
    end = max(i for i, span in enumerate(expert.spans) if span.name == "reply")
    return [*others, replace(expert, spans=expert.spans[:end])]


async def test_what_cannot_be_traced_is_refused(folder: Path) -> None:
    async with serving_in_threads(folder, transport="loopback", **SETTINGS) as service:
        with pytest.raises(ConfigError, match="must hold 70 tokens"):
            await trace_decode(service.engine, service.tracer, 1, 60, 7)
        traces = await trace_decode(service.engine, service.tracer, 2, 5, 1)
        assert last_step(traces) == last_step(without_last_reply(traces)) + 1
        with pytest.raises(ConfigError, match="99 were asked for"):
            chrome_trace(traces, 99)

"""A process that builds one instance's share of a model and times its operations on request.

The first line it reads is a `Job`, each further one a `TimingTask`, answered with seconds. It ends
with its input. It runs the code of the engine: blocks, kernels, sampler, scheduler.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import msgspec
import numba
import torch

from janus_moe.attention.sampler import SamplingRow, choose_tokens
from janus_moe.experts.epoch import first_tables, make_epoch
from janus_moe.experts.scheduling import Schedulers
from janus_moe.kernels.paged_attention import AttentionBatch
from janus_moe.messages import SamplingParams
from janus_moe.model.attention_block import AttentionModel, KvCache, StepInput
from janus_moe.model.checkpoint import Checkpoint
from janus_moe.model.expert_block import ExpertModel
from janus_moe.policy.placement import initial_placement
from janus_moe.profiling.plan import COLD_BYTES, Job, TimingTask
from janus_moe.spec import ModelSpec
from janus_moe.torch_dtypes import TORCH_DTYPES
from janus_moe.tracing.durations import lower_quartile

CACHE_BYTES = 512 * 2**20
"""KV cache to read from; sequences share blocks beyond it, and no cache of a CPU holds so much."""
LEAST_RUNS = 3

Call = Callable[[], object]


class Bench(Protocol):
    """What can be timed of one instance."""

    def call(self, cell: TimingTask) -> tuple[Call, int]:
        """(a call, how many such operations it does)."""
        ...


class AttentionBench:
    """Operations of an attention instance; every call goes through all layers, as a step does."""

    def __init__(self, job: Job) -> None:
        self._device, spec = torch.device(job.device), job.spec
        self._spec, self._block_size = spec, job.block_size
        self._model = AttentionModel.load(spec, Checkpoint.open(Path(job.checkpoint)), self._device)
        per_block = max(1, spec.kv_bytes_per_token * job.block_size)
        self._num_blocks = max(256, CACHE_BYTES // per_block)
        self._cache = KvCache.allocate(spec, self._num_blocks, job.block_size, self._device)
        for tensor in itertools.chain.from_iterable(self._cache.layers):
            tensor.normal_()  # memory that was never written is all one page, and in every cache

    def call(self, cell: TimingTask) -> tuple[Call, int]:
        tokens = cell.sizes[0]
        hidden = self._hidden(tokens)
        if cell.operation == "attention":
            step = self._step(tokens, cell.sizes[1])
            return (lambda: self._attention(hidden, step)), self._spec.num_layers
        if cell.operation == "head":
            row = SamplingRow(SamplingParams(temperature=0.0), (0,), 1, 0)
            return (lambda: choose_tokens(self._model.logits(hidden), [row] * tokens)), 1
        layers = self._spec.moe_layer_ids
        if cell.operation == "shared":
            return (lambda: [self._model.shared(i, hidden) for i in layers]), len(layers)
        others = [i for i, kind in enumerate(self._spec.layers) if kind.mlp == "dense"]
        return (lambda: [self._model.dense(i, hidden) for i in others]), len(others)

    def _attention(self, hidden: torch.Tensor, step: StepInput) -> None:
        for layer in range(self._spec.num_layers):
            after, normed = self._model.attention(layer, hidden, step, self._cache)
            _ = after + normed

    def _hidden(self, tokens: int) -> torch.Tensor:
        dtype = TORCH_DTYPES[self._spec.dtype]
        return torch.randn(tokens, self._spec.hidden_size, device=self._device).to(dtype)

    def _step(self, tokens: int, context: int) -> StepInput:
        """One new token for each sequence, at position context - 1."""
        width = -(-context // self._block_size)
        order = torch.randperm(self._num_blocks)
        blocks = order.repeat(-(-tokens * width // len(order)))[: tokens * width].view(tokens, -1)
        last = blocks[:, -1] * self._block_size + (context - 1) % self._block_size
        return StepInput(
            token_ids=torch.zeros(tokens, dtype=torch.int64, device=self._device),
            positions=torch.full((tokens,), context - 1, device=self._device),
            slot_mapping=last.to(self._device),
            batch=AttentionBatch(
                torch.arange(tokens + 1, dtype=torch.int32, device=self._device),
                torch.full((tokens,), context, dtype=torch.int32, device=self._device),
                blocks.int().to(self._device),
            ),
        )


class ExpertBench:
    """Operations of an expert instance; layers take turns, so that their weights are cold."""

    def __init__(self, job: Job) -> None:
        self._device = torch.device(job.device)
        self._spec = spec = _some_layers(job.spec, job.num_instances)
        placement = initial_placement(
            num_layers=spec.num_moe_layers,
            num_experts=spec.moe.num_experts,
            num_instances=job.num_instances,
            redundant_experts=0,
        )
        self._slots = [len(layer[job.index]) for layer in placement.slots]
        self._model = ExpertModel.load(
            spec,
            Checkpoint.open(Path(job.checkpoint)),
            [layer[job.index] for layer in placement.slots],
            self._device,
        )
        tables = first_tables(placement, job.index)
        schedulers = Schedulers(job.index, job.policy, self._device)  # type: ignore[arg-type]
        self._schedulers = make_epoch(placement, tables, schedulers).schedulers
        self._turns: Iterator[tuple[int, int]] = itertools.cycle(enumerate(spec.moe_layer_ids))

    def call(self, cell: TimingTask) -> tuple[Call, int]:
        if cell.operation == "gate":
            hidden = self._hidden(cell.sizes[0])
            return (lambda: self._gate(hidden)), 1
        activated, each = min(cell.sizes[0], min(self._slots)), cell.sizes[1]
        per_token = min(self._spec.moe.router.top_k, activated)
        tokens = -(-activated * each // per_token)
        picks = torch.arange(tokens * per_token) % activated
        slot_ids = torch.full((tokens, self._spec.moe.router.top_k), -1, dtype=torch.int32)
        slot_ids[:, :per_token] = picks.view(tokens, per_token).int()
        slot_ids = slot_ids.to(self._device)
        weights = torch.ones_like(slot_ids, dtype=torch.float32)
        hidden = self._hidden(tokens)
        return (lambda: self._model.compute(next(self._turns)[1], hidden, slot_ids, weights)), 1

    def _gate(self, hidden: torch.Tensor) -> None:
        number, layer = next(self._turns)
        expert_ids, _ = self._model.route(layer, hidden)
        self._schedulers[number].schedule(expert_ids)

    def _hidden(self, tokens: int) -> torch.Tensor:
        dtype = TORCH_DTYPES[self._spec.dtype]
        return torch.randn(tokens, self._spec.hidden_size, device=self._device).to(dtype)


def _some_layers(spec: ModelSpec, num_instances: int) -> ModelSpec:
    """The first layers, with as many experts as no cache holds."""
    first = spec.moe_layer_ids[0]
    per_layer = max(1, spec.expert_bytes * spec.moe.num_experts // num_instances)
    layers = min(spec.num_layers, first + max(2, -(-COLD_BYTES // per_layer)))
    return msgspec.structs.replace(spec, layers=spec.layers[:layers])


def seconds_of(bench: Bench, cell: TimingTask, device: str) -> float:
    """The lower quartile of runs of one operation in seconds, after one that warms up."""
    wait: Callable[[], object] = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    call, operations = bench.call(cell)
    call()
    wait()
    times: list[float] = []
    until = time.perf_counter() + cell.budget_s
    while len(times) < LEAST_RUNS or time.perf_counter() < until:
        start = time.perf_counter()
        call()
        wait()
        times.append((time.perf_counter() - start) / operations)
    return lower_quartile(times)


def main() -> None:
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)
    torch.set_num_threads(job.num_threads)
    numba.set_num_threads(min(job.num_threads, numba.config.NUMBA_NUM_THREADS))
    torch.manual_seed(0)
    with torch.inference_mode():
        bench: Bench = AttentionBench(job) if job.pool == "attention" else ExpertBench(job)
        print("ready", flush=True)
        for line in sys.stdin.buffer:
            cell = msgspec.json.decode(line, type=TimingTask)
            print(seconds_of(bench, cell, job.device), flush=True)


if __name__ == "__main__":
    main()

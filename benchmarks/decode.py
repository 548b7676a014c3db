"""Decode speed of the whole engine beside transformers, and the price of separate pools.

    python -m benchmarks.decode --json benchmarks/results/decode.json

Claims: float32, two threads, the `1b` shape (Qwen3-MoE, 1.005 B parameters, 64 experts top-8),
greedy, prompts of 64 tokens: the disaggregated engine (1A1E over shared memory) makes at least 3x
the tokens per second of transformers eager at B=16 and 2x at B=1, and costs at most 15 % over the
same engine in one process (loopback) at B=16.

All engines are loaded at once and take turns, round after round, so that what else the machine
does hits all of them; the ratios are medians over the rounds, with 95 % bootstrap intervals. What
waits is blocked and uses no core.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from benchmarks.support.program import Result, flag, main
from benchmarks.support.ratios import paired_ratio

from janus_moe.cluster.service import Service
from janus_moe.config import EngineConfig
from janus_moe.profiling import live

SHAPE_1B: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 384,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 32768,
    "max_position_embeddings": 4096,
    "norm_topk_prob": True,
    "tie_word_embeddings": False,
}
PROMPT_TOKENS = 64
THREADS = 2

Decode = Callable[[list[list[int]], int], Awaitable[float]]
"""(prompts, tokens to produce) -> seconds per decode step, prefill left out."""

Times = dict[tuple[str, int], list[float]]
"""(engine, batch) -> seconds per decode step of each round."""


def measure(options: argparse.Namespace) -> Result:
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.checkpoint or Path(scratch) / "1b"
        make_checkpoint(folder)
        times = asyncio.run(decode_in_turns(folder, options))
    return {"rows": [row(batch, times) for batch in options.batches]}


def make_checkpoint(folder: Path) -> None:
    """Random weights, written by transformers."""
    if (folder / "config.json").exists():
        return
    from transformers import AutoModelForCausalLM, Qwen3MoeConfig

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(Qwen3MoeConfig(**SHAPE_1B), dtype=torch.float32)
    model.save_pretrained(folder)


async def decode_in_turns(folder: Path, options: argparse.Namespace) -> Times:
    """Lets all engines decode all batch sizes, round after round; the first one warms up."""
    times: Times = {}
    async with contextlib.AsyncExitStack() as stack:
        engines: dict[str, Decode] = {"transformers": transformers_engine(folder)}
        for transport in ("loopback", "shm"):
            service = await stack.enter_async_context(live.running(settings(folder, transport)))
            engines[transport] = janus_engine(service)
        for turn in range(options.rounds + 1):
            for batch in options.batches:
                for name, decode in engines.items():
                    seconds = await decode(make_prompts(batch, turn), options.tokens)
                    if turn > 0:
                        times.setdefault((name, batch), []).append(seconds)
            print(f"round {turn} of {options.rounds} done", flush=True)
    return times


def row(batch: int, times: Times) -> dict[str, Any]:
    """Tokens per second of each engine and the ratios that are claimed."""
    hf, loopback, shm = (times[name, batch] for name in ("transformers", "loopback", "shm"))
    return {
        "B": batch,
        "transformers tok/s": batch / median(hf),
        "loopback tok/s": batch / median(loopback),
        "shm 1A1E tok/s": batch / median(shm),
        **paired_ratio(hf, shm).columns("shm / transformers"),
        **paired_ratio(shm, loopback).columns("step of shm / loopback"),
    }


def make_prompts(batch: int, turn: int) -> list[list[int]]:
    """Prompts that differ between turns, so that no prefix is cached."""
    generator = torch.Generator().manual_seed(1000 * turn + batch)
    vocabulary = SHAPE_1B["vocab_size"]
    return torch.randint(0, vocabulary, (batch, PROMPT_TOKENS), generator=generator).tolist()


def transformers_engine(folder: Path) -> Decode:
    """Greedy decoding by transformers: eager attention, its default expert implementation."""
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(THREADS)
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    ).eval()

    async def decode(prompts: list[list[int]], num_tokens: int) -> float:
        with torch.inference_mode():
            output = model(torch.tensor(prompts), use_cache=True)
            start = time.perf_counter()
            for _ in range(num_tokens):
                next_ids = output.logits[:, -1:].argmax(dim=-1)
                output = model(next_ids, past_key_values=output.past_key_values, use_cache=True)
            return (time.perf_counter() - start) / num_tokens

    return decode


def settings(folder: Path, transport: str) -> EngineConfig:
    """A 1A1E service with its worker processes."""
    return EngineConfig(
        model=str(folder),
        tokenizer="bundled",  # only ids are exchanged
        transport=transport,  # type: ignore[arg-type]
        threads=THREADS,
        max_model_len=512,
        max_num_batched_tokens=4096,
    )


def janus_engine(service: Service) -> Decode:
    """The same work through the engine: from when all prompts are in to the last token."""

    async def decode(prompts: list[list[int]], num_tokens: int) -> float:
        return (await live.decode(service, prompts, num_tokens)).seconds

    return decode


if __name__ == "__main__":
    main(
        __doc__,
        measure,
        flag("--batches", type=int, nargs="+", default=[1, 4, 16, 64]),
        flag("--tokens", type=int, default=24, help="decode steps per turn"),
        flag("--rounds", type=int, default=5),
        flag("--checkpoint", type=Path, help="folder to make or reuse"),
    )

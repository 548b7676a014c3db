"""`janus generate`: complete prompts and print them, without a server."""

from __future__ import annotations

import argparse
import json
import sys

import msgspec

from janus_moe.cli.console import StartupView
from janus_moe.cli.flags import add_flags, split
from janus_moe.config import EngineConfig
from janus_moe.llm import LLM, Completion

SAMPLING_FLAGS = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "sampling_seed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Prompts, sampling, and the engine's own flags."""
    parser.add_argument(
        "--prompt", action="append", required=True, help="text to complete; may be repeated"
    )
    parser.add_argument("--stop", action="append", default=[], help="text to stop at")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--min-p", type=float, default=0.0)
    parser.add_argument("--sampling-seed", type=int, help="same seed, same tokens")
    parser.add_argument("--json", action="store_true", help="one JSON object per prompt")
    add_flags(parser, EngineConfig)


def run(arguments: argparse.Namespace) -> int:
    """Prints each completion after its prompt; everything else goes to standard error."""
    values = dict(vars(arguments))
    prompts, stop, as_json = values.pop("prompt"), values.pop("stop"), values.pop("json")
    sampling = {name.removeprefix("sampling_"): values.pop(name) for name in SAMPLING_FLAGS}
    (settings,) = split(values, [EngineConfig])
    view = StartupView()
    with LLM(on_plan=view.plan, on_progress=view.progress, **settings) as engine:
        view.say("ready", f"prompts to complete: {len(prompts)}")
        for completion in engine.generate(prompts, stop, **sampling):
            print(_as_json(completion) if as_json else f"{completion.prompt}{completion.text}")
            sys.stdout.flush()
    return 0


def _as_json(completion: Completion) -> str:
    fields = ("prompt", "text", "token_ids", "finish_reason")
    return json.dumps(msgspec.to_builtins({name: getattr(completion, name) for name in fields}))

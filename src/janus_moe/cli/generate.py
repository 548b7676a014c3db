"""`janus generate`: complete prompts and print them, without a server.

Flags are read before anything heavy is loaded.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from janus_moe.cli.flags import Command, flag
from janus_moe.config import EngineConfig

if TYPE_CHECKING:
    from janus_moe.engine.engine import Engine
    from janus_moe.llm import Completion


class GenerateOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is completed, and how tokens are chosen."""

    prompt: Annotated[tuple[str, ...], flag("text to complete; may be repeated", repeated=True)]
    stop: Annotated[tuple[str, ...], flag("text to stop at; may be repeated", repeated=True)] = ()
    max_tokens: Annotated[int, flag("tokens of each completion at most", at_least=0)] = 64
    temperature: Annotated[float, flag("0 is greedy", at_least=0, at_most=2)] = 0.0
    top_k: Annotated[int, flag("keep so many tokens; 0: all", at_least=0)] = 0
    top_p: Annotated[float, flag("keep this share of the probability", above=0, at_most=1)] = 1.0
    min_p: Annotated[
        float, flag("keep tokens of this share of the likeliest one's", at_least=0, at_most=1)
    ] = 0.0
    sampling_seed: Annotated[int | None, flag("same seed, same tokens: any number of 64 bits")] = (
        None
    )
    json: Annotated[bool, flag("print one JSON object per prompt; no file")] = False

    @property
    def sampling(self) -> dict[str, Any]:
        """Parameters by the names that `LLM.generate` has for them."""
        names = ("max_tokens", "temperature", "top_k", "top_p", "min_p")
        return {"seed": self.sampling_seed, **{name: getattr(self, name) for name in names}}


def run(options: GenerateOptions, engine: EngineConfig) -> int:
    """Prints each completion after its prompt; everything else goes to standard error."""
    from janus_moe.llm import LLM, require_servable
    from janus_moe.startup_view import StartupView

    settings = msgspec.structs.asdict(engine)
    view = StartupView()

    def check(engine: Engine) -> None:
        require_servable(engine, options.prompt, options.sampling)

    with LLM(view=view, check=check, **settings) as llm:
        view.say("ready", f"prompts to complete: {len(options.prompt)}")
        for one in llm.generate(options.prompt, options.stop, **options.sampling):
            print(_as_json(one) if options.json else f"{one.prompt}{one.text}")
            sys.stdout.flush()
    return 0


def _as_json(completion: Completion) -> str:
    fields = ("prompt", "text", "token_ids", "finish_reason")
    return json.dumps(msgspec.to_builtins({name: getattr(completion, name) for name in fields}))


COMMAND = Command(options=(GenerateOptions, EngineConfig), run=run)

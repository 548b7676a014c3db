"""From request bodies to prompts in token ids and sampling settings, with every limit checked.

The functions that tokenize or render run on a text thread, see `textwork`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from janus_moe.config import ServerConfig
from janus_moe.engine.text.chat import render_chat
from janus_moe.errors import RequestError
from janus_moe.messages import SamplingParams
from janus_moe.server.app_state import AppState
from janus_moe.server.backend import EngineBackend
from janus_moe.server.jobs import EngineJob
from janus_moe.server.requests import ChatBody, CompletionBody, SamplingBody, TokenizeBody

MAX_SEQUENCES = 1024
DEFAULT_COMPLETION_TOKENS = 16


@dataclass(frozen=True, slots=True)
class TokenizedPrompt:
    """A prompt as the engine takes it.

    ids: token ids
    text: what they stand for, where the response shows it again; else empty
    """

    ids: tuple[int, ...]
    text: str = ""


def check_sampling(body: SamplingBody, config: ServerConfig, vocab_size: int) -> None:
    """Limits that depend on settings or on several fields. Raises RequestError."""
    _at_most("n", body.n, config.max_completions)
    if body.best_of is not None and body.best_of != body.n:
        raise RequestError("best_of other than n is not supported", "best_of")
    if len(body.stop_strings) > config.max_stop_strings:
        raise RequestError(f"stop may have at most {config.max_stop_strings} strings", "stop")
    if body.stream_options is not None and not body.stream:
        raise RequestError("stream_options needs stream: true", "stream_options")
    for token_id in body.stop_token_ids:
        _in_vocabulary(token_id, vocab_size, "stop_token_ids")
    for token in body.logit_bias:
        if not token.isdecimal() or len(token) > 10:
            raise RequestError("logit_bias must map token ids to numbers", "logit_bias")
        _in_vocabulary(int(token), vocab_size, "logit_bias")


def check_logprobs(name: str, value: int | None, config: ServerConfig) -> None:
    if value is not None:
        _at_most(name, value, config.max_logprobs)


def completion_prompts(backend: EngineBackend, body: CompletionBody) -> list[TokenizedPrompt]:
    """All prompts of a completion request, tokenized."""
    given = body.prompt
    if isinstance(given, str):
        entries: Sequence[str | Sequence[int]] = [given]
    elif given and all(isinstance(entry, int) for entry in given):
        entries = [[entry for entry in given if isinstance(entry, int)]]
    else:
        entries = [entry for entry in given if not isinstance(entry, int)]
        if len({type(entry) for entry in given}) > 1:
            raise RequestError("prompt must not mix texts and token ids", "prompt")
    if not entries:
        raise RequestError("prompt must not be empty", "prompt")
    if len(entries) * body.n > MAX_SEQUENCES:
        raise RequestError(f"prompts times n must be at most {MAX_SEQUENCES}", "prompt")
    special = body.add_special_tokens is not False
    return [_prompt(backend, entry, special, echo=body.echo) for entry in entries]


def chat_prompt(state: AppState, body: ChatBody | TokenizeBody) -> TokenizedPrompt:
    """The rendered and tokenized conversation."""
    if body.continue_final_message and body.add_generation_prompt:
        raise RequestError(
            "continue_final_message needs add_generation_prompt: false", "continue_final_message"
        )
    text = render_chat(
        state.backend.tokenizer,
        body.messages or [],
        template=state.chat_template,
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message,
        variables=body.chat_template_kwargs,
    )
    # Templates write the special tokens themselves.
    return _text_prompt(state.backend, text, body.add_special_tokens is True, "messages")


def make_jobs(
    backend: EngineBackend,
    body: SamplingBody,
    prompts: Sequence[TokenizedPrompt],
    *,
    default_max_tokens: int | None,
    logprobs: int | None,
    prompt_logprobs: int | None = None,
) -> tuple[EngineJob, ...]:
    """One job per prompt and sample. `default_max_tokens` None means the rest of the context."""
    jobs: list[EngineJob] = []
    asked, most = len(prompts) * body.n, backend.config.max_queue
    if asked > most:
        raise RequestError(
            f"prompts times n are {asked} sequences, but this server holds at most {most} at once",
            "n",
        )
    for prompt_index, prompt in enumerate(prompts):
        limit = _max_tokens(
            len(prompt.ids), body.token_limit, default_max_tokens, backend.max_model_len
        )
        for sample in range(body.n):
            job = EngineJob(
                index=len(jobs),
                prompt_index=prompt_index,
                sample=sample,
                prompt_ids=prompt.ids,
                sampling=_sampling(body, limit, logprobs, prompt_logprobs, sample),
                stop=body.stop_strings,
            )
            jobs.append(job)
    return tuple(jobs)


def _prompt(
    backend: EngineBackend, entry: str | Sequence[int], special: bool, *, echo: bool
) -> TokenizedPrompt:
    if isinstance(entry, str):
        return _text_prompt(backend, entry, special, "prompt")
    if not entry:
        raise RequestError("prompt must not be empty", "prompt")
    _in_vocabulary(max(entry), backend.spec.vocab_size, "prompt")
    text = backend.tokenizer.decode(entry, skip_special_tokens=False) if echo else ""
    return TokenizedPrompt(tuple(entry), text)


def _text_prompt(backend: EngineBackend, text: str, special: bool, param: str) -> TokenizedPrompt:
    if not text:
        raise RequestError(f"{param} must not be empty", param)
    # No tokenizer makes fewer tokens of it, so there is no need to find out how many.
    longest = backend.max_model_len * max(1, backend.tokenizer.max_token_chars)
    if len(text) > longest:
        raise RequestError(
            f"the prompt's {len(text)} characters cannot fit into this model's context of "
            f"{backend.max_model_len} tokens",
            param,
        )
    ids = tuple(backend.tokenizer.encode(text, add_special_tokens=special))
    if not ids:
        raise RequestError(f"{param} contains no tokens", param)
    return TokenizedPrompt(ids, text)


def _max_tokens(prompt: int, asked: int | None, default: int | None, context: int) -> int:
    room = context - prompt
    if asked is None:
        if room < 1:
            raise RequestError(
                f"this model's context has {context} tokens and the prompt already {prompt}",
                "prompt",
            )
        return room if default is None else min(default, room)
    if asked > room:
        raise RequestError(
            f"this model's context has {context} tokens, but the prompt has {prompt} and "
            f"max_tokens asks for {asked} more",
            "max_tokens" if room > 0 else "prompt",
        )
    return asked


def _sampling(
    body: SamplingBody,
    max_tokens: int,
    logprobs: int | None,
    prompt_logprobs: int | None,
    sample: int,
) -> SamplingParams:
    if body.min_tokens > max_tokens:
        raise RequestError(
            f"min_tokens is {body.min_tokens} but at most {max_tokens} tokens can follow",
            "min_tokens",
        )
    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=body.min_tokens,
        temperature=body.temperature,
        top_k=max(0, body.top_k),
        top_p=body.top_p,
        min_p=body.min_p,
        # Generators want a non-negative seed; clients may send any 64-bit one.
        seed=None if body.seed is None else (body.seed + sample) % 2**63,
        repetition_penalty=body.repetition_penalty,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        logit_bias={int(token): bias for token, bias in body.logit_bias.items()},
        stop_token_ids=tuple(body.stop_token_ids),
        ignore_eos=body.ignore_eos,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
    )


def _at_most(name: str, value: int, limit: int) -> None:
    if value > limit:
        raise RequestError(f"{name} must be at most {limit}, got {value}", name)


def _in_vocabulary(token_id: int, vocab_size: int, param: str) -> None:
    if token_id >= vocab_size:
        raise RequestError(
            f"token id {token_id} is outside this model's vocabulary of {vocab_size}", param
        )

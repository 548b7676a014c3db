"""The bodies of requests, with the limits of every field. See `parsing` for unknown fields."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

UpTo2 = Annotated[float, Meta(ge=0, le=2)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Probability = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Positive = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Seconds = Annotated[float, Meta(ge=0, le=86_400)]
StopText = Annotated[str, Meta(min_length=1, max_length=1024)]
Bias = Annotated[float, Meta(ge=-100, le=100)]


class Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all bodies. `model` may be omitted: there is only one."""

    model: str | None = None


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: bool = False


class SamplingBody(Body, frozen=True, kw_only=True):
    """What completions and chat completions have in common.

    max_completion_tokens: the newer name of max_tokens, and stronger.
    top_k: -1 and 0 keep all tokens.
    """

    n: Positive = 1
    best_of: Positive | None = None
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    min_tokens: Count = 0
    temperature: UpTo2 = 1.0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] = 0
    min_p: Probability = 0.0
    repetition_penalty: Annotated[float, Meta(gt=0, le=2)] = 1.0
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    logit_bias: Annotated[dict[str, Bias], Meta(max_length=1024)] = {}
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: StopText | list[StopText] = []
    stop_token_ids: Annotated[list[Count], Meta(max_length=128)] = []
    ignore_eos: bool = False
    stream: bool = False
    stream_options: StreamOptions | None = None
    return_token_ids: bool = False
    add_special_tokens: bool | None = None

    @property
    def token_limit(self) -> int | None:
        """How many tokens may follow; None takes the endpoint's default."""
        newer = self.max_completion_tokens
        return self.max_tokens if newer is None else newer

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class CompletionBody(SamplingBody, frozen=True, kw_only=True):
    """POST /v1/completions. prompt: text, texts, token ids, or lists of token ids."""

    prompt: str | list[str | Count | list[Count]]
    echo: bool = False
    logprobs: Count | None = None


class ChatBody(SamplingBody, frozen=True, kw_only=True):
    """POST /v1/chat/completions. Messages are checked when the template is rendered."""

    messages: Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=16384)]
    logprobs: bool = False
    top_logprobs: Count | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: Annotated[dict[str, Any], Meta(max_length=64)] = {}


class TokenizeBody(Body, frozen=True, kw_only=True):
    """POST /tokenize: a text, or messages as the chat endpoint would see them."""

    prompt: str | None = None
    messages: Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=16384)] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: Annotated[dict[str, Any], Meta(max_length=64)] = {}
    return_token_strs: bool = False


class RebalanceBody(Body, frozen=True, kw_only=True):
    """POST /rebalance: expert ids by MoE layer and expert instance; without them, by the load."""

    placement: list[list[list[Count]]] | None = None


class ScaleBody(Body, frozen=True, kw_only=True):
    """POST /scale.

    attention, expert: wanted sizes of the pools; None means that it stays as it should be.
    drain_timeout: seconds that attention instances which leave may finish their requests.
    """

    attention: Count | None = msgspec.field(default=None, name="attention_instances")
    expert: Count | None = msgspec.field(default=None, name="expert_instances")
    drain_timeout: Seconds = 30.0


class DetokenizeBody(Body, frozen=True, kw_only=True):
    """POST /detokenize."""

    tokens: list[Count]

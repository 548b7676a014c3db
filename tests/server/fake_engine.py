"""A deterministic engine without a model: the answer depends on prompt and seed alone."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

from janus_moe.config import EngineConfig
from janus_moe.engine.chunks import Status, TokenChunk
from janus_moe.engine.placement_controller import RebalanceStatus
from janus_moe.engine.refusal import Refusal
from janus_moe.engine.text.detokenizer import Detokenizer
from janus_moe.engine.text.stopping import StopStrings
from janus_moe.engine.text.tokenizer import Tokenizer
from janus_moe.messages import ExpertLoad, SamplingParams, TokenLogprob
from janus_moe.policy.placement import Placement
from janus_moe.server.backend import DurationTotal, EngineSnapshot
from janus_moe.spec import (
    WEIGHT_FORMATS,
    GqaSpec,
    InstanceId,
    LayerSpec,
    ModelSpec,
    MoeSpec,
    RopeSpec,
    RouterSpec,
)

EXPERTS = [InstanceId(pool="expert", number=i) for i in range(2)]


def tiny_spec(vocab_size: int, max_position: int) -> ModelSpec:
    return ModelSpec(
        family="tiny",
        hidden_size=8,
        vocab_size=vocab_size,
        max_position=max_position,
        rms_norm_eps=1e-6,
        tie_embeddings=True,
        attention=(
            GqaSpec(
                num_heads=1,
                num_kv_heads=1,
                head_dim=8,
                scale=1.0,
                qk_norm=False,
                bias=False,
                rope=RopeSpec(inv_freq=(1.0,)),
            ),
        ),
        layers=(LayerSpec(),),
        moe=MoeSpec(
            num_experts=2,
            intermediate_size=8,
            router=RouterSpec(top_k=1, scoring="softmax", normalize=False),
        ),
        dense_intermediate_size=0,
        dtype="float32",
        weight_format=WEIGHT_FORMATS["float32"],
        expert_format=WEIGHT_FORMATS["float32"],
    )


@dataclass
class FakePlacementController:
    """refusal: raised by every rebalance. asked: the slots of each."""

    placement: Placement = field(
        default_factory=lambda: Placement(epoch=7, num_experts=2, slots=(((0,), (1,), (0, 1)),))
    )
    load: ExpertLoad | None = None
    status: RebalanceStatus = field(default_factory=RebalanceStatus)
    refusal: Exception | None = None
    asked: list[object] = field(default_factory=list)

    async def rebalance(
        self, slots: Sequence[Sequence[Sequence[int]]] | None = None
    ) -> RebalanceStatus:
        if self.refusal is not None:
            raise self.refusal
        self.asked.append(slots)
        self.status = RebalanceStatus(state="loading", target_epoch=9, step=1, num_steps=2)
        return self.status


class FakeScaleController:
    """Notes what it is asked for. refusal: raised by everything that changes something."""

    def __init__(self) -> None:
        self.asked: list[tuple[int | None, int | None, float] | str] = []
        self.degraded = ""
        self.refusal: Exception | None = None

    def scale(self, attention: int | None, expert: int | None, drain_timeout_s: float) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.asked.append((attention, expert, drain_timeout_s))

    def abort(self) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.asked.append("abort")

    def status(self) -> dict[str, Any]:
        one = [{"pool": "attention", "number": 3}]
        return {
            "generation": 7,
            "attention": one,
            "expert": [{"pool": "expert", "number": 4}, {"pool": "expert", "number": 6}],
            "phase": "serving",
            "degraded": self.degraded,
        }


@dataclass
class FakeEngine:
    """Serves `reply` where given, otherwise text drawn from prompt and seed.

    failures: raised by the submit with that count; fail_after: raises `mid_failure` after that
    many tokens; token_delay_s: pause before every token.
    """

    tokenizer: Tokenizer
    max_model_len: int = 512
    reply: str | None = None
    token_delay_s: float = 0.0
    failures: dict[int, Exception] = field(default_factory=dict)
    fail_after: int | None = None
    mid_failure: Exception = field(default_factory=lambda: RuntimeError("secret /etc/passwd"))
    status: Status = "ready"
    status_detail: str = "weights 40 %"
    running: set[str] = field(default_factory=set)
    aborted: list[str] = field(default_factory=list)
    submitted: list[tuple[str, tuple[int, ...], SamplingParams, tuple[str, ...]]] = field(
        default_factory=list
    )

    def __post_init__(self) -> None:
        self.placement_controller = FakePlacementController()
        self.scale_controller: FakeScaleController | None = None
        self.refusal: Refusal | None = None
        self.config = EngineConfig(model="tiny-moe")
        self.spec = tiny_spec(self.tokenizer.vocab_size, self.max_model_len)

    def snapshot(self) -> EngineSnapshot:
        return EngineSnapshot(
            running=len(self.running),
            waiting=2,
            kv_usage=0.25,
            prompt_tokens=11,
            generation_tokens=22,
            preemptions=1,
            readmissions=6,
            pool_sizes={"attention": 1, "expert": 3},
            activated_experts={EXPERTS[0]: 4.0, EXPERTS[1]: 5.5},
            expert_load_imbalance=1.2,
            dispatch=DurationTotal(count=10, total_s=0.5),
            placement_epoch=7,
            exchange_plan="1pc",
            exchange_steps={"2pc-direct": 3, "1pc": 4},
        )

    def submit(
        self,
        request_id: str,
        prompt_ids: Sequence[int],
        sampling: SamplingParams,
        stop: tuple[str, ...],
    ) -> AsyncGenerator[TokenChunk]:
        count = len(self.submitted)
        self.submitted.append((request_id, tuple(prompt_ids), sampling, stop))
        if count in self.failures:
            raise self.failures[count]
        return self._stream(request_id, tuple(prompt_ids), sampling, stop)

    async def _stream(
        self,
        request_id: str,
        prompt_ids: tuple[int, ...],
        sampling: SamplingParams,
        stop: tuple[str, ...],
    ) -> AsyncGenerator[TokenChunk]:
        finished = False
        self.running.add(request_id)
        try:
            async for chunk in self._chunks(prompt_ids, sampling, stop):
                finished = chunk.finish_reason is not None
                yield chunk
        finally:
            self.running.discard(request_id)
            if not finished:
                self.aborted.append(request_id)

    async def _chunks(
        self, prompt_ids: tuple[int, ...], sampling: SamplingParams, stop: tuple[str, ...]
    ) -> AsyncGenerator[TokenChunk]:
        detokenizer, stops = Detokenizer(self.tokenizer, prompt_ids), StopStrings(stop)
        prompt_logprobs = self._prompt_logprobs(prompt_ids, sampling.prompt_logprobs)
        ids = self._reply_ids(prompt_ids, sampling)
        if sampling.max_tokens == 0:
            yield TokenChunk("", prompt_logprobs=prompt_logprobs, finish_reason="length")
        for position, token_id in enumerate(ids):
            await asyncio.sleep(self.token_delay_s)
            if position == self.fail_after:
                raise self.mid_failure
            text, matched = stops.push(detokenizer.push([token_id]))
            at_end, is_eos = position + 1 == len(ids), token_id in self.tokenizer.eos_token_ids
            reason = "stop" if matched or is_eos else "length" if at_end else None
            if reason and not matched:
                text += detokenizer.flush() + stops.flush()
            yield TokenChunk(
                text,
                token_ids=(token_id,),
                logprobs=self._logprobs(token_id, sampling.logprobs),
                prompt_logprobs=prompt_logprobs if position == 0 else None,
                finish_reason=reason,  # type: ignore[arg-type]
                stop_reason=matched,
                num_cached_tokens=3,
                queued_s=0.25 if position == 0 else None,
            )
            if reason:
                return

    def _reply_ids(self, prompt_ids: tuple[int, ...], sampling: SamplingParams) -> list[int]:
        if self.reply is not None:
            ids = [*self.tokenizer.encode(self.reply), *self.tokenizer.eos_token_ids]
        else:
            draw = random.Random(f"{prompt_ids} {sampling.seed}")
            ids = [2 + draw.randrange(self.tokenizer.vocab_size - 2) for _ in range(2000)]
        return ids[: sampling.max_tokens]

    def _logprobs(self, token_id: int, num_top: int | None) -> tuple[TokenLogprob, ...] | None:
        if num_top is None:
            return None
        ranked = [(token_id + i) % self.tokenizer.vocab_size for i in range(num_top)]
        top = tuple((rival, -0.5 - rank) for rank, rival in enumerate(ranked))
        return (TokenLogprob(token_id, -0.5, top),)

    def _prompt_logprobs(
        self, prompt_ids: tuple[int, ...], num_top: int | None
    ) -> tuple[TokenLogprob | None, ...] | None:
        if num_top is None:
            return None
        rest = [self._logprobs(i, num_top) for i in prompt_ids[1:]]
        return (None, *(entry[0] for entry in rest if entry is not None))

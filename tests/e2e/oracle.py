"""The undivided model, by transformers: what every completion is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests.e2e.harness import Completion
from transformers import AutoModelForCausalLM

RELATIVE_TOLERANCE = 1e-4
"""Of the largest logit, as float32 sums differ in order between the two."""


class Oracle:
    """Teacher forcing: one forward over prompt and completion judges every step of it."""

    def __init__(self, folder: Path) -> None:
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def logits(self, token_ids: Sequence[int]) -> torch.Tensor:
        """[tokens, vocabulary] float32."""
        with torch.inference_mode():
            output: torch.Tensor = self._model(torch.tensor([list(token_ids)])).logits[0].float()
        return output

    def routing(self, token_ids: Sequence[int]) -> list[torch.Tensor]:
        """Per MoE layer [tokens, top_k] expert ids; of models whose router is a plain top-k."""
        with torch.inference_mode():
            ids = torch.tensor([list(token_ids)])
            layers = self._model(ids, output_router_logits=True).router_logits
        top_k = self._model.config.num_experts_per_tok
        return [logits.topk(top_k, dim=-1).indices for logits in layers]

    def check_greedy(self, prompt_ids: Sequence[int], completion: Completion) -> float:
        """Every token is the arg max and every log-probability agrees; returns the worst error,
        relative to the largest logit."""
        logits = self.logits([*prompt_ids, *completion.token_ids])[len(prompt_ids) - 1 : -1]
        assert completion.token_ids == logits.argmax(dim=-1).tolist()
        return self._worst_error(logits, completion)

    def _worst_error(self, logits: torch.Tensor, completion: Completion) -> float:
        if not completion.logprobs:
            return 0.0
        entries = [entry.top for entry in completion.logprobs]
        assert {len(top) for top in entries} == {logits.shape[-1]}, "ask for the whole vocabulary"
        numbers = np.fromiter(chain.from_iterable(chain.from_iterable(entries)), np.float64)
        tops = torch.from_numpy(numbers).view(*logits.shape, 2)  # id, log-probability
        ours = torch.full_like(logits, float("nan"))
        ours.scatter_(1, tops[..., 0].long(), tops[..., 1].float())
        error = (ours - torch.log_softmax(logits, dim=-1)).abs().max() / logits.abs().max()
        assert error <= RELATIVE_TOLERANCE
        return float(error)

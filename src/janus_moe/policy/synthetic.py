"""Synthetic routing, named as such: for questions that no recorded trace answers.

Every token draws its top-k experts without replacement, in proportion to the weights of its topic
(Gumbel top-k):

uniform  all experts alike: what a perfectly balanced router would do
zipf     one popularity for all tokens, 1 / rank^0.8 in a random order of experts
topics   16 topics with their own favourite experts; every token of a batch has its own topic
bursty   as `topics`, but two topics, drawn anew for each batch, own 90 % of its tokens

With 256 experts, top-8 and 64 tokens they activate about 223, 177, 207 and 168 experts. Real
routers lie between `uniform` and `topics`; measure before quoting figures as anything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from janus_moe.errors import ConfigError

SyntheticKind = Literal["uniform", "zipf", "topics", "bursty"]

NUM_TOPICS = 16
TOPIC_SPREAD = 1.6  # standard deviation of a topic's log weights
ZIPF_EXPONENT = 0.8
DOMINANT_TOPICS = 2
DOMINANT_SHARE = 0.9


class SyntheticRouter:
    """The router of one layer. `seed` fixes the weights; batches draw from the caller's rng.

    topics: the topics that tokens may have, of 0 to 15; to train on some and test on others.
    """

    def __init__(
        self,
        kind: SyntheticKind,
        num_experts: int,
        top_k: int,
        seed: int = 0,
        topics: Sequence[int] = range(NUM_TOPICS),
    ) -> None:
        if kind not in get_args(SyntheticKind):
            names = ", ".join(get_args(SyntheticKind))
            raise ConfigError(f"synthetic routing must be one of {names}; got {kind!r}")
        if not 1 <= top_k <= num_experts:
            raise ConfigError(f"top_k must be from 1 to {num_experts} experts, got {top_k}")
        if not topics or not set(topics) <= set(range(NUM_TOPICS)):
            raise ConfigError(f"topics must be some of 0 to {NUM_TOPICS - 1}, got {list(topics)}")
        self.kind = kind
        self.num_experts = num_experts
        self.top_k = top_k
        self._topics = np.array(sorted(set(topics)))
        rng = np.random.default_rng(seed)
        if kind == "uniform":
            self._log_weights = np.zeros((NUM_TOPICS, num_experts))
        elif kind == "zipf":
            log_weights = -ZIPF_EXPONENT * np.log(1 + rng.permutation(num_experts))
            self._log_weights = np.tile(log_weights, (NUM_TOPICS, 1))
        else:
            self._log_weights = rng.normal(0, TOPIC_SPREAD, (NUM_TOPICS, num_experts))

    def batch(self, num_tokens: int, rng: np.random.Generator) -> NDArray[np.int32]:
        """[num_tokens, top_k] int32 distinct expert ids per token."""
        topic = rng.choice(self._topics, num_tokens)
        if self.kind == "bursty":
            some = rng.choice(self._topics, min(DOMINANT_TOPICS, len(self._topics)), replace=False)
            dominated = rng.random(num_tokens) < DOMINANT_SHARE
            topic = np.where(dominated, rng.choice(some, num_tokens), topic)
        noise = np.log(rng.standard_exponential((num_tokens, self.num_experts)))
        keys = noise - self._log_weights[topic]
        chosen = np.argpartition(keys, self.top_k - 1, axis=1)[:, : self.top_k]
        return chosen.astype(np.int32)

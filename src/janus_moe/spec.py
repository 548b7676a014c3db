"""Nouns that every layer shares: what a model is, where it lives, how large the pools are.

Everything here is an immutable value without behaviour beyond derived properties. This module
knows nothing of torch, files, processes or HTTP.
"""

from __future__ import annotations

from typing import Literal, get_args

import msgspec

from janus_moe.errors import ConfigError

Dtype = Literal["float32", "bfloat16"]
Pool = Literal["attention", "expert"]
ExchangePlanName = Literal["1pc", "2pc-direct", "2pc-relay", "2pc-sharded"]
"""Which messages an exchange between the pools consists of; docs/transport.md has the plans."""

EXCHANGE_PLANS: tuple[ExchangePlanName, ...] = get_args(ExchangePlanName)

DTYPE_BYTES: dict[str, int] = {"float32": 4, "bfloat16": 2}


class Spec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the immutable values; decoding one from bytes rejects unknown fields."""


class RopeSpec(Spec, frozen=True):
    """Rotary position embedding with static frequencies.

    inv_freq: [rotary_dim / 2] inverse frequencies, scaling (YaRN, llama3, linear) included.
    attention_factor: factor on cos and sin.
    layout: "halves" pairs dimension i with i + rotary_dim/2; "interleaved" pairs 2i with 2i+1.
    """

    inv_freq: tuple[float, ...]
    attention_factor: float = 1.0
    layout: Literal["halves", "interleaved"] = "halves"


class GqaSpec(Spec, frozen=True, tag="gqa"):
    """Grouped-query attention; `qk_norm` is an RMSNorm over each head's dimension."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    qk_norm: bool
    bias: bool

    @property
    def cache_row(self) -> int:
        """Elements one token takes in the KV cache of one layer."""
        return 2 * self.num_kv_heads * self.head_dim


class MlaSpec(Spec, frozen=True, tag="mla"):
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434 section 2.1).

    `q_lora_rank` is None when queries are projected directly (DeepSeek-V2-Lite).
    """

    num_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    nope_head_dim: int
    rope_head_dim: int
    value_head_dim: int
    scale: float
    bias: bool
    lora_norm_eps: float

    @property
    def cache_row(self) -> int:
        """Elements one token takes in the KV cache of one layer: the latent and the rotary key."""
        return self.kv_lora_rank + self.rope_head_dim


class RouterSpec(Spec, frozen=True):
    """How router logits become top-k expert ids and weights.

    scoring: softmax or sigmoid over the expert logits.
    num_groups/top_groups: group-limited selection; 1/1 means none.
    group_score: "max" (DeepSeek-V2) or "top2_sum" (DeepSeek-V3).
    correction_bias: a learned bias that counts for the selection but not for the weights.
    logits_dtype: what the gate's matrix product runs in, "model" for the model's own dtype.
    """

    top_k: int
    scoring: Literal["softmax", "sigmoid"]
    normalize: bool
    scaling_factor: float = 1.0
    num_groups: int = 1
    top_groups: int = 1
    group_score: Literal["max", "top2_sum"] = "max"
    correction_bias: bool = False
    logits_dtype: Literal["model", "float32"] = "model"


class MoeSpec(Spec, frozen=True):
    """The routed experts of every MoE layer, and the shared expert (0 = none)."""

    num_experts: int
    intermediate_size: int
    router: RouterSpec
    shared_intermediate_size: int = 0


class ModelSpec(Spec, frozen=True):
    """Everything the workers must know of a checkpoint, without opening it.

    moe_layers: [num_layers] True where the layer's MLP is a mixture of experts.
    dense_intermediate_size: MLP width of the other layers (0 when there is none).
    dtype: what weights, activations and KV cache are held in.
    """

    family: str
    hidden_size: int
    num_layers: int
    vocab_size: int
    max_position: int
    rms_norm_eps: float
    tie_embeddings: bool
    attention: GqaSpec | MlaSpec
    rope: RopeSpec
    moe: MoeSpec
    moe_layers: tuple[bool, ...]
    dense_intermediate_size: int
    dtype: Dtype
    eos_token_ids: tuple[int, ...] = ()

    @property
    def moe_layer_ids(self) -> tuple[int, ...]:
        return tuple(layer for layer, is_moe in enumerate(self.moe_layers) if is_moe)

    @property
    def expert_bytes(self) -> int:
        """Bytes of one expert of one layer: gate, up and down projections."""
        return 3 * self.hidden_size * self.moe.intermediate_size * DTYPE_BYTES[self.dtype]

    @property
    def kv_bytes_per_token(self) -> int:
        return self.num_layers * self.attention.cache_row * DTYPE_BYTES[self.dtype]


class PoolShape(Spec, frozen=True):
    """`attention` x `expert` instances; any two positive numbers."""

    attention: int
    expert: int

    def __post_init__(self) -> None:
        for pool, count in (("attention", self.attention), ("expert", self.expert)):
            if count < 1:
                raise ConfigError(f"--{pool}-instances must be at least 1, got {count}")

    def __str__(self) -> str:
        return f"{self.attention}A{self.expert}E"


class InstanceId(Spec, frozen=True):
    """Permanent name of one worker of a pool, e.g. `expert 2`.

    pool: the pool it belongs to.
    number: told apart by it within the pool; never used again for another, and no rank.
    """

    pool: Pool
    number: int

    def __str__(self) -> str:
        return f"{self.pool} {self.number}"


class Membership(Spec, frozen=True):
    """Which instances are in the pools in one generation; never changed, only followed by another.

    The id of an instance is permanent and never used again. Its rank is its position here, from 0
    in each pool, and means something only together with a membership.

    generation: number of this membership; later ones have larger numbers.
    attention: ids of the attention instances, ascending by rank.
    expert: ids of the expert instances, ascending by rank.
    attention_hosts: [attention instances] number of the host of each.
    expert_hosts: [expert instances] number of the host of each.
    placement_epoch: epoch of the placement that the first steps of this generation use.
    """

    generation: int
    attention: tuple[InstanceId, ...]
    expert: tuple[InstanceId, ...]
    attention_hosts: tuple[int, ...]
    expert_hosts: tuple[int, ...]
    placement_epoch: int = 0

    def __post_init__(self) -> None:
        for pool, members, hosts in (
            ("attention", self.attention, self.attention_hosts),
            ("expert", self.expert, self.expert_hosts),
        ):
            if len(members) != len(hosts):
                raise ConfigError(f"{len(members)} {pool} instances on {len(hosts)} hosts")
            if len(set(members)) != len(members) or any(m.pool != pool for m in members):
                raise ConfigError(f"not a pool of {pool} instances: {', '.join(map(str, members))}")
        _ = self.shape

    @classmethod
    def first(cls, shape: PoolShape) -> Membership:
        """Generation 0 of a service on one host, with ids from 0 in each pool."""
        return cls(
            generation=0,
            attention=tuple(InstanceId(pool="attention", number=i) for i in range(shape.attention)),
            expert=tuple(InstanceId(pool="expert", number=i) for i in range(shape.expert)),
            attention_hosts=(0,) * shape.attention,
            expert_hosts=(0,) * shape.expert,
        )

    @property
    def shape(self) -> PoolShape:
        return PoolShape(attention=len(self.attention), expert=len(self.expert))

    @property
    def instances(self) -> tuple[InstanceId, ...]:
        """All members, attention instances first."""
        return (*self.attention, *self.expert)

    def pool(self, pool: Pool) -> tuple[InstanceId, ...]:
        """The members of one pool by rank."""
        return self.attention if pool == "attention" else self.expert

    def rank(self, instance: InstanceId) -> int:
        """Position of a member in its pool; raises ValueError when it is not a member."""
        members = self.pool(instance.pool)
        if instance not in members:
            raise ValueError(f"{instance} is no member of generation {self.generation}")
        return members.index(instance)

    def host_of(self, instance: InstanceId) -> int:
        """Number of the host that runs a member; raises ValueError when it is not a member."""
        hosts = self.attention_hosts if instance.pool == "attention" else self.expert_hosts
        return hosts[self.rank(instance)]

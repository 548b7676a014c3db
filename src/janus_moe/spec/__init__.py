"""Nouns that every layer shares: what a model is, who is in the pools.

    base        the immutable value             formats     numbers and weights in memory
    attention   kinds of attention              model       a whole model
    pools       shapes, instances, membership   exchange    names of transports and plans
    activation  names of policies

Everything here is an immutable value without behaviour beyond what follows from it. The package
knows nothing of torch, files, processes or HTTP.
"""

from janus_moe.spec.activation import (
    ActivationPolicy,
    DevicePolicy,
    ExpertPolicy,
    Policy,
    ReplicaPolicy,
)
from janus_moe.spec.attention import (
    AttentionKind,
    AttentionSpec,
    CacheOperation,
    GqaSpec,
    Matrix,
    MlaSpec,
    Numbers,
    RopeSpec,
    Shape,
)
from janus_moe.spec.base import Spec
from janus_moe.spec.exchange import (
    EXCHANGE_PLANS,
    NODE_MESSAGE_PLANS,
    ONE_PROCESS,
    ExchangePlanName,
    TransportName,
)
from janus_moe.spec.formats import (
    DTYPE_BYTES,
    WEIGHT_FORMATS,
    Dtype,
    FormatName,
    NumberFormat,
    WeightFormat,
)
from janus_moe.spec.model import LayerSpec, MlpKind, ModelSpec, MoeSpec, RouterSpec
from janus_moe.spec.pools import InstanceId, Membership, Pool, PoolShape

__all__ = [
    "DTYPE_BYTES",
    "EXCHANGE_PLANS",
    "NODE_MESSAGE_PLANS",
    "ONE_PROCESS",
    "WEIGHT_FORMATS",
    "ActivationPolicy",
    "AttentionKind",
    "AttentionSpec",
    "CacheOperation",
    "DevicePolicy",
    "Dtype",
    "ExchangePlanName",
    "ExpertPolicy",
    "FormatName",
    "GqaSpec",
    "InstanceId",
    "LayerSpec",
    "Matrix",
    "Membership",
    "MlaSpec",
    "MlpKind",
    "ModelSpec",
    "MoeSpec",
    "NumberFormat",
    "Numbers",
    "Policy",
    "Pool",
    "PoolShape",
    "ReplicaPolicy",
    "RopeSpec",
    "RouterSpec",
    "Shape",
    "Spec",
    "TransportName",
    "WeightFormat",
]

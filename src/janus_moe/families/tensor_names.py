"""What checkpoints call their tensors: role -> template with {layer} and {expert}.

Roles are the words of `spec.attention` and `model.tensors`; this module knows no shapes.
"""

from __future__ import annotations

from collections.abc import Mapping

_LAYER = "model.layers.{layer}."

COMMON_NAMES: Mapping[str, str] = {
    "embed": "model.embed_tokens.weight",
    "final_norm": "model.norm.weight",
    "lm_head": "lm_head.weight",
    "input_norm": _LAYER + "input_layernorm.weight",
    "mlp_norm": _LAYER + "post_attention_layernorm.weight",
    "o": _LAYER + "self_attn.o_proj.weight",
    "o_bias": _LAYER + "self_attn.o_proj.bias",
    "dense_gate": _LAYER + "mlp.gate_proj.weight",
    "dense_up": _LAYER + "mlp.up_proj.weight",
    "dense_down": _LAYER + "mlp.down_proj.weight",
    "router": _LAYER + "mlp.gate.weight",
    "router_bias": _LAYER + "mlp.gate.e_score_correction_bias",
    "shared_gate": _LAYER + "mlp.shared_experts.gate_proj.weight",
    "shared_up": _LAYER + "mlp.shared_experts.up_proj.weight",
    "shared_down": _LAYER + "mlp.shared_experts.down_proj.weight",
    "expert_gate": _LAYER + "mlp.experts.{expert}.gate_proj.weight",
    "expert_up": _LAYER + "mlp.experts.{expert}.up_proj.weight",
    "expert_down": _LAYER + "mlp.experts.{expert}.down_proj.weight",
}

GQA_NAMES: Mapping[str, str] = {
    "q": _LAYER + "self_attn.q_proj.weight",
    "k": _LAYER + "self_attn.k_proj.weight",
    "v": _LAYER + "self_attn.v_proj.weight",
    "q_bias": _LAYER + "self_attn.q_proj.bias",
    "k_bias": _LAYER + "self_attn.k_proj.bias",
    "v_bias": _LAYER + "self_attn.v_proj.bias",
    "q_norm": _LAYER + "self_attn.q_norm.weight",
    "k_norm": _LAYER + "self_attn.k_norm.weight",
}

MLA_NAMES: Mapping[str, str] = {
    "q": _LAYER + "self_attn.q_proj.weight",
    "q_a": _LAYER + "self_attn.q_a_proj.weight",
    "q_a_bias": _LAYER + "self_attn.q_a_proj.bias",
    "q_a_norm": _LAYER + "self_attn.q_a_layernorm.weight",
    "q_b": _LAYER + "self_attn.q_b_proj.weight",
    "kv_a": _LAYER + "self_attn.kv_a_proj_with_mqa.weight",
    "kv_a_bias": _LAYER + "self_attn.kv_a_proj_with_mqa.bias",
    "kv_a_norm": _LAYER + "self_attn.kv_a_layernorm.weight",
    "kv_b": _LAYER + "self_attn.kv_b_proj.weight",
}

"""The bundled model as files: the Hugging Face Qwen3-MoE layout, written and read back.

Does not know how the network computes.
"""

import json
from pathlib import Path
from typing import Any

import torch
from examples.bundled_model.network import Network, NetworkConfig
from safetensors.torch import load_file, save_file
from torch import Tensor


def transformers_config(config: NetworkConfig, end_of_text_id: int) -> dict[str, Any]:
    """The content of `config.json`."""
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.moe_intermediate_size * config.num_experts_per_tok,
        "moe_intermediate_size": config.moe_intermediate_size,
        "num_experts": config.num_experts,
        "num_experts_per_tok": config.num_experts_per_tok,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "max_position_embeddings": config.max_position_embeddings,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "router_aux_loss_coef": 0.001,
        "output_router_logits": False,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "sliding_window": None,
        "use_cache": True,
        "torch_dtype": "bfloat16",
        "bos_token_id": end_of_text_id,
        "eos_token_id": end_of_text_id,
        "pad_token_id": end_of_text_id,
    }


_ATTENTION_NAMES = {
    "input_norm": "input_layernorm",
    "expert_norm": "post_attention_layernorm",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "o_proj": "self_attn.o_proj",
    "router": "mlp.gate",
}


def hub_tensors(network: Network) -> dict[str, Tensor]:
    """Views of the weights under the tensor names of published Qwen3-MoE checkpoints."""
    tensors: dict[str, Tensor] = {
        "model.embed_tokens.weight": network.embedding,
        "model.norm.weight": network.final_norm,
    }
    for number, layer in enumerate(network.layers):
        prefix = f"model.layers.{number}"
        for ours, theirs in _ATTENTION_NAMES.items():
            tensors[f"{prefix}.{theirs}.weight"] = layer.get_parameter(ours)
        gate_up, down = layer.get_parameter("gate_up"), layer.get_parameter("down")
        for expert in range(network.config.num_experts):
            gate, up = gate_up[expert].chunk(2, dim=0)
            name = f"{prefix}.mlp.experts.{expert}"
            tensors[f"{name}.gate_proj.weight"] = gate
            tensors[f"{name}.up_proj.weight"] = up
            tensors[f"{name}.down_proj.weight"] = down[expert]
    return {name: tensor.detach() for name, tensor in tensors.items()}


def export_network(network: Network, folder: Path, end_of_text_id: int) -> None:
    """Write config.json, generation_config.json and model.safetensors (bfloat16)."""
    tensors = {
        name: tensor.to(torch.bfloat16, copy=True).contiguous()
        for name, tensor in hub_tensors(network).items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    generation = {
        "bos_token_id": end_of_text_id,
        "eos_token_id": end_of_text_id,
        "pad_token_id": end_of_text_id,
    }
    config = transformers_config(network.config, end_of_text_id)
    for name, content in (("config.json", config), ("generation_config.json", generation)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def load_network(folder: Path) -> Network:
    """Read an exported folder back, in float32."""
    raw = json.loads((folder / "config.json").read_text())
    config = NetworkConfig(**{name: raw[name] for name in NetworkConfig.__dataclass_fields__})
    network = Network(config)
    stored = load_file(folder / "model.safetensors")
    for name, tensor in hub_tensors(network).items():
        tensor.copy_(stored[name])
    return network

"""The Llama architecture in torch, for training and for checking: plain functions over Hugging Face tensor names.

Imported by the training script only; torch is in no other part of the project.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Weights", "config", "hidden_states", "initial_weights", "logits", "rotary_tables"]

Weights = dict[str, Tensor]


def config(vocab_size: int) -> dict[str, Any]:
    """config.json of the demo model: head_dim 64 because vLLM's CPU attention kernel knows it; 1.96 MB of float32."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 128,
        "intermediate_size": 240,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "vocab_size": vocab_size,
        "max_position_embeddings": 4096,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "torch_dtype": "float32",
        "use_cache": True,
    }


def initial_weights(cfg: dict[str, Any], generator: torch.Generator) -> Weights:
    """Fresh weights: normal(0, 0.02) embeddings, 1/sqrt(fan in) matrices, outputs scaled down by depth."""
    hidden, inner, layers = cfg["hidden_size"], cfg["intermediate_size"], cfg["num_hidden_layers"]
    keys = cfg["num_key_value_heads"] * cfg["head_dim"]
    queries = cfg["num_attention_heads"] * cfg["head_dim"]

    def matrix(rows: int, columns: int, scale: float = 1.0) -> Tensor:
        return torch.randn(rows, columns, generator=generator) * (scale * 0.7 / math.sqrt(columns))

    down = 1.0 / math.sqrt(2 * layers)
    weights = {"model.embed_tokens.weight": torch.randn(cfg["vocab_size"], hidden, generator=generator) * 0.02}
    for layer in range(layers):
        at = f"model.layers.{layer}."
        weights[at + "input_layernorm.weight"] = torch.ones(hidden)
        weights[at + "self_attn.q_proj.weight"] = matrix(queries, hidden)
        weights[at + "self_attn.k_proj.weight"] = matrix(keys, hidden)
        weights[at + "self_attn.v_proj.weight"] = matrix(keys, hidden)
        weights[at + "self_attn.o_proj.weight"] = matrix(hidden, queries, down)
        weights[at + "post_attention_layernorm.weight"] = torch.ones(hidden)
        weights[at + "mlp.gate_proj.weight"] = matrix(inner, hidden)
        weights[at + "mlp.up_proj.weight"] = matrix(inner, hidden)
        weights[at + "mlp.down_proj.weight"] = matrix(hidden, inner, down)
    weights["model.norm.weight"] = torch.ones(hidden)
    return weights


def rotary_tables(cfg: dict[str, Any], length: int) -> tuple[Tensor, Tensor]:
    """cos and sin of shape (length, head_dim), in the half-split layout that Hugging Face uses."""
    half = cfg["head_dim"] // 2
    frequencies = cfg["rope_theta"] ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * frequencies
    doubled = torch.cat((angles, angles), dim=-1)
    return doubled.cos().float(), doubled.sin().float()


def _rotate(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * tables[0] + torch.cat((-second, first), dim=-1) * tables[1]


def hidden_states(weights: Weights, cfg: dict[str, Any], ids: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Final normed states (batch, length, hidden) of right-padded rows; `tables` may be longer than the rows."""
    rows, length = ids.shape
    cut = (tables[0][:length], tables[1][:length])
    heads, size, eps = cfg["num_attention_heads"], cfg["head_dim"], cfg["rms_norm_eps"]
    x = functional.embedding(ids, weights["model.embed_tokens.weight"])
    for layer in range(cfg["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        y = functional.rms_norm(x, (x.shape[-1],), weights[at + "input_layernorm.weight"], eps)
        q = (y @ weights[at + "self_attn.q_proj.weight"].T).view(rows, length, heads, size).transpose(1, 2)
        k = (y @ weights[at + "self_attn.k_proj.weight"].T).view(rows, length, -1, size).transpose(1, 2)
        v = (y @ weights[at + "self_attn.v_proj.weight"].T).view(rows, length, -1, size).transpose(1, 2)
        share = heads // k.shape[1]
        q, k = _rotate(q, cut), _rotate(k, cut).repeat_interleave(share, dim=1)
        v = v.repeat_interleave(share, dim=1)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + mixed.transpose(1, 2).reshape(rows, length, -1) @ weights[at + "self_attn.o_proj.weight"].T
        y = functional.rms_norm(x, (x.shape[-1],), weights[at + "post_attention_layernorm.weight"], eps)
        gate = functional.silu(y @ weights[at + "mlp.gate_proj.weight"].T)
        x = x + (gate * (y @ weights[at + "mlp.up_proj.weight"].T)) @ weights[at + "mlp.down_proj.weight"].T
    return functional.rms_norm(x, (x.shape[-1],), weights["model.norm.weight"], eps)


def logits(weights: Weights, states: Tensor) -> Tensor:
    """Scores of the next token, over the tied embedding."""
    return states @ weights["model.embed_tokens.weight"].T

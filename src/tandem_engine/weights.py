"""Weights from safetensors, laid out for the tile products: [in, out], float32, query/key/value and gate/up merged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from tandem_engine.config import ModelConfig, ModelFolderError

__all__ = ["LayerWeights", "Weights", "load_weights"]

Floats = npt.NDArray[np.float32]

# bfloat16 has no numpy type; float16 widens to float32 without loss.
_READABLE = ("F32", "F16")


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One transformer block. Matrices are [in, out] and contiguous; norms are [hidden]."""

    attention_norm: Floats
    qkv: Floats
    attention_out: Floats
    mlp_norm: Floats
    gate_up: Floats
    down: Floats


@dataclass(frozen=True, slots=True)
class Weights:
    """All of a model. `embedding` is [vocab, hidden], `head` is [hidden, vocab]."""

    embedding: Floats
    layers: tuple[LayerWeights, ...]
    final_norm: Floats
    head: Floats


def load_weights(folder: Path, config: ModelConfig) -> Weights:
    """The weights of every *.safetensors file in `folder`, checked against `config`.

    Raises ModelFolderError for a missing file or tensor, a wrong shape, or a type numpy cannot read (bfloat16).
    """
    tensors = _read_tensors(folder)

    def take(name: str, *shape: int) -> Floats:
        if name not in tensors:
            raise ModelFolderError(f"{folder}: tensor {name} is missing")
        tensor = tensors[name]
        if tensor.shape != shape:
            raise ModelFolderError(f"{folder}: tensor {name} has shape {tensor.shape}, config.json asks for {shape}")
        return tensor

    hidden, vocab = config.hidden_size, config.vocab_size
    embedding = take("model.embed_tokens.weight", vocab, hidden)
    head = embedding if config.tie_embeddings else take("lm_head.weight", vocab, hidden)
    return Weights(
        embedding=embedding,
        layers=tuple(_layer(take, config, index) for index in range(config.num_layers)),
        final_norm=take("model.norm.weight", hidden),
        head=np.ascontiguousarray(head.T),
    )


def _layer(take: Callable[..., Floats], config: ModelConfig, index: int) -> LayerWeights:
    prefix = f"model.layers.{index}."
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim

    def columns(*parts: tuple[str, int]) -> Floats:
        return np.ascontiguousarray(
            np.concatenate([take(f"{prefix}{name}.weight", rows, hidden) for name, rows in parts]).T
        )

    return LayerWeights(
        attention_norm=take(f"{prefix}input_layernorm.weight", hidden),
        qkv=columns(("self_attn.q_proj", queries), ("self_attn.k_proj", keys), ("self_attn.v_proj", keys)),
        attention_out=np.ascontiguousarray(take(f"{prefix}self_attn.o_proj.weight", hidden, queries).T),
        mlp_norm=take(f"{prefix}post_attention_layernorm.weight", hidden),
        gate_up=columns(("mlp.gate_proj", inner), ("mlp.up_proj", inner)),
        down=np.ascontiguousarray(take(f"{prefix}mlp.down_proj.weight", hidden, inner).T),
    )


def _read_tensors(folder: Path) -> dict[str, Floats]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelFolderError(f"{folder}: no *.safetensors file")
    tensors: dict[str, Floats] = {}
    for path in files:
        try:
            with safe_open(path, framework="np") as opened:
                for name in opened.keys():  # noqa: SIM118 - safe_open is not a mapping
                    dtype = opened.get_slice(name).get_dtype()
                    if dtype not in _READABLE:
                        raise ModelFolderError(f"{path}: tensor {name} is {dtype}; save the model as float32")
                    tensors[name] = opened.get_tensor(name).astype(np.float32)
        except SafetensorError as error:
            raise ModelFolderError(f"{path}: {error}") from None
    return tensors

"""A random model of the demo model's shape, in a real folder, and time that moves when told."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from tandem_engine.engine import Engine

RunEngine = Callable[..., AbstractAsyncContextManager[Engine]]


def write_random_model(folder: Path, seed: int = 7) -> Path:
    """A Llama of the demo's shape (hidden 128, 2 heads of 64, 1 key/value head, 3 layers, tied), random and peaked
    enough that greedy choices have a margin."""
    # Only now: tandem_engine must be imported before numpy, since it sets the number of BLAS threads.
    import numpy as np
    from safetensors.numpy import save_file

    rng = np.random.default_rng(seed)
    hidden, inner, vocab, layers = 128, 192, 512, 3

    def matrix(rows: int, columns: int, scale: float = 1.0) -> Any:
        return (rng.standard_normal((rows, columns)) * scale / columns**0.5).astype(np.float32)

    tensors = {
        "model.embed_tokens.weight": rng.standard_normal((vocab, hidden)).astype(np.float32) * np.float32(0.2),
        "model.norm.weight": np.ones(hidden, np.float32),
    }
    for index in range(layers):
        prefix = f"model.layers.{index}."
        tensors |= {
            prefix + "input_layernorm.weight": np.ones(hidden, np.float32),
            prefix + "post_attention_layernorm.weight": np.ones(hidden, np.float32),
            prefix + "self_attn.q_proj.weight": matrix(128, hidden, 2.0),
            prefix + "self_attn.k_proj.weight": matrix(64, hidden, 2.0),
            prefix + "self_attn.v_proj.weight": matrix(64, hidden),
            prefix + "self_attn.o_proj.weight": matrix(hidden, 128),
            prefix + "mlp.gate_proj.weight": matrix(inner, hidden),
            prefix + "mlp.up_proj.weight": matrix(inner, hidden),
            prefix + "mlp.down_proj.weight": matrix(hidden, inner),
        }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "intermediate_size": inner,
        "vocab_size": vocab,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "eos_token_id": 0,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


class ManualClock:
    """Time that moves when told."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s

"""PEFT folders with random adapters, strong enough that greedy answers change."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tandem_engine.config import ModelConfig

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Rows (outputs) and columns (inputs) of each projection."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return {
        "q_proj": (queries, hidden),
        "k_proj": (keys, hidden),
        "v_proj": (keys, hidden),
        "o_proj": (hidden, queries),
        "gate_proj": (inner, hidden),
        "up_proj": (inner, hidden),
        "down_proj": (hidden, inner),
    }


def random_tensors(
    config: ModelConfig, *, seed: int, r: int, modules: Sequence[str], strength: float
) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    tensors: dict[str, Any] = {}
    for index in range(config.num_layers):
        for module in modules:
            rows, columns = shapes(config)[module]
            block = "mlp" if module in ("gate_proj", "up_proj", "down_proj") else "self_attn"
            prefix = f"base_model.model.model.layers.{index}.{block}.{module}.lora_"
            tensors[f"{prefix}A.weight"] = (rng.standard_normal((r, columns)) / columns**0.5).astype(np.float32)
            tensors[f"{prefix}B.weight"] = (rng.standard_normal((rows, r)) * strength / r**0.5).astype(np.float32)
    return tensors


def write_adapter(
    folder: Path,
    config: ModelConfig,
    *,
    seed: int = 1,
    rank: int = 4,
    modules: Sequence[str] = PROJECTIONS,
    strength: float = 0.5,
    tensors: dict[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """A folder as the PEFT library saves it; `changes` go into adapter_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    if tensors is None:
        tensors = random_tensors(config, seed=seed, r=rank, modules=modules, strength=strength)
    save_file(tensors, folder / "adapter_model.safetensors")
    written = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": list(modules),
        "bias": "none",
        **changes,
    }
    (folder / "adapter_config.json").write_text(json.dumps(written))
    return folder

"""Reading an adapter from a PEFT folder: adapter_config.json and adapter_model.safetensors.

The layout is that of the PEFT library's `save_pretrained`: tensors are named
base_model.model.model.layers.N.self_attn.q_proj.lora_A.weight [r, in] and .lora_B.weight [out, r], and the change of a
matrix is B A x scale, with scale = lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from tandem_engine.config import ModelConfig, ModelFolderError
from tandem_engine.lora import Adapter, LayerPatches, Patch
from tandem_engine.tiles import Floats

__all__ = ["MAX_RANK", "AdapterFolderError", "load_adapter"]

MAX_RANK = 256
"""Largest r that is served; it bounds an adapter's memory."""

MAX_ALPHA = 1e6
"""Largest lora_alpha, by size: beyond it float32 sums overflow, whatever the weights."""

_TENSOR = re.compile(
    r"base_model\.model\.model\.layers\.([0-9]{1,4})\.((?:self_attn|mlp)\.\w+_proj)\.lora_(A|B)(?:\.default)?\.weight"
)

# Keys of PEFT's LoraConfig that change the arithmetic, or which tokens it applies to.
_UNSUPPORTED = (
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "use_dora",
    "use_qalora",
    "fan_in_fan_out",
    "layer_replication",
    "alora_invocation_tokens",
)


class AdapterFolderError(ModelFolderError):
    """An adapter folder cannot be served: the text names the file, the key or tensor, and what was found."""


def load_adapter(folder: str | Path, config: ModelConfig, *, adapter_id: str, name: str, is_pinned: bool) -> Adapter:
    """The adapter in `folder`, checked against the model's `config`. Raises AdapterFolderError."""
    path = Path(folder)
    r, scale = _rank_and_scale(path / "adapter_config.json")
    tensors = _tensors(path / "adapter_model.safetensors")
    digest = hashlib.blake2b(repr((r, scale)).encode(), digest_size=16)
    pairs: dict[tuple[int, str], dict[str, Floats]] = {}
    for tensor_name in sorted(tensors):
        match = _TENSOR.fullmatch(tensor_name)
        if match is None:
            raise AdapterFolderError(f"{path}: tensor {tensor_name} is not of a projection that this engine can change")
        pair = pairs.setdefault((int(match[1]), match[2]), {})
        if match[3] in pair:
            raise AdapterFolderError(f"{path}: tensor {tensor_name} is there twice, under two names")
        if not np.isfinite(tensors[tensor_name]).all():
            raise AdapterFolderError(f"{path}: tensor {tensor_name} holds what is not a number")
        pair[match[3]] = tensors[tensor_name]
        digest.update(tensor_name.encode() + tensors[tensor_name].tobytes())
    patches = {key: _patch(path, key, pair, config, r, scale) for key, pair in pairs.items()}
    return Adapter(
        adapter_id=adapter_id,
        name=name,
        path=str(folder),
        is_pinned=is_pinned,
        digest=digest.hexdigest(),
        layers=tuple(_layer(patches, index) for index in range(config.num_layers)),
    )


def _layer(patches: Mapping[tuple[int, str], Patch], index: int) -> LayerPatches:
    def of(*names: str) -> tuple[Patch, ...]:
        return tuple(patches[index, name] for name in names if (index, name) in patches)

    return LayerPatches(
        qkv=of("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        attention_out=of("self_attn.o_proj"),
        gate_up=of("mlp.gate_proj", "mlp.up_proj"),
        down=of("mlp.down_proj"),
    )


def _patch(
    path: Path, key: tuple[int, str], pair: Mapping[str, Floats], config: ModelConfig, r: int, scale: float
) -> Patch:
    index, module = key
    where = f"{path}: layer {index} {module}"
    shapes = _shapes(config)
    if index >= config.num_layers or module not in shapes:
        raise AdapterFolderError(f"{where}: the model has no such projection")
    if len(pair) != 2:
        raise AdapterFolderError(f"{where}: lora_A and lora_B belong together, one is missing")
    rows, columns, column = shapes[module]
    expected = ((r, columns), (rows, r))
    if (pair["A"].shape, pair["B"].shape) != expected:
        raise AdapterFolderError(f"{where}: shapes are {pair['A'].shape} and {pair['B'].shape}, expected {expected}")
    return Patch(
        down=np.ascontiguousarray(pair["A"].T),
        up=np.ascontiguousarray(pair["B"].T * np.float32(scale)),
        column=column,
    )


def _shapes(config: ModelConfig) -> dict[str, tuple[int, int, int]]:
    """Of each projection: outputs, inputs, and its first column in the merged matrix that holds it."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return {
        "self_attn.q_proj": (queries, hidden, 0),
        "self_attn.k_proj": (keys, hidden, queries),
        "self_attn.v_proj": (keys, hidden, queries + keys),
        "self_attn.o_proj": (hidden, queries, 0),
        "mlp.gate_proj": (inner, hidden, 0),
        "mlp.up_proj": (inner, hidden, inner),
        "mlp.down_proj": (hidden, inner, 0),
    }


def _rank_and_scale(path: Path) -> tuple[int, float]:
    try:
        raw: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AdapterFolderError(f"{path}: a PEFT adapter's configuration is expected: {error}") from None
    if not isinstance(raw, dict):
        raise AdapterFolderError(f"{path}: a JSON object is expected")
    if raw.get("peft_type", "LORA") != "LORA":
        raise AdapterFolderError(f"{path}: peft_type {raw['peft_type']!r} is not supported, only 'LORA'")
    if raw.get("bias", "none") != "none":
        raise AdapterFolderError(f"{path}: bias {raw['bias']!r} is not supported, only 'none'")
    for key in _UNSUPPORTED:
        if raw.get(key):
            raise AdapterFolderError(f"{path}: {key} is not supported")
    r, alpha = raw.get("r"), raw.get("lora_alpha")
    if not isinstance(r, int) or isinstance(r, bool) or not 1 <= r <= MAX_RANK:
        raise AdapterFolderError(f"{path}: r must be an integer in [1, {MAX_RANK}], got {r!r}")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not -MAX_ALPHA <= alpha <= MAX_ALPHA:
        raise AdapterFolderError(f"{path}: lora_alpha must be a number in [-{MAX_ALPHA:g}, {MAX_ALPHA:g}]")
    return r, alpha / (math.sqrt(r) if raw.get("use_rslora") else r)


def _tensors(path: Path) -> dict[str, Floats]:
    tensors: dict[str, Floats] = {}
    try:
        with safe_open(path, framework="np") as opened:
            for name in opened.keys():  # noqa: SIM118 - safe_open is not a mapping
                dtype = opened.get_slice(name).get_dtype()
                if dtype not in ("F32", "F16"):
                    raise AdapterFolderError(f"{path}: tensor {name} is {dtype}; save the adapter as float32")
                tensors[name] = opened.get_tensor(name).astype(np.float32)
    except (OSError, SafetensorError) as error:
        raise AdapterFolderError(f"{path}: {error}") from None
    if not tensors:
        raise AdapterFolderError(f"{path}: no tensors")
    return tensors

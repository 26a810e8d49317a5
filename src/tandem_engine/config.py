"""The shape of a Llama model, read from a Hugging Face folder's config.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["ModelConfig", "ModelFolderError"]


class ModelFolderError(ValueError):
    """A model folder cannot be served: the text names the file, the key and what was found."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What the arithmetic needs to know. Counts are positive; `num_heads` is a multiple of `num_kv_heads`."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position: int
    rms_norm_eps: float
    rope_theta: float
    tie_embeddings: bool
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in (
            "hidden_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "intermediate_size",
            "vocab_size",
            "max_position",
        ):
            if getattr(self, name) <= 0:
                raise ModelFolderError(f"config: {name} must be positive, got {getattr(self, name)}")
        if self.num_heads % self.num_kv_heads:
            raise ModelFolderError(
                f"config: {self.num_heads} attention heads are not a multiple of {self.num_kv_heads} key/value heads"
            )
        if self.head_dim % 2:
            raise ModelFolderError(f"config: head_dim must be even for rotary positions, got {self.head_dim}")

    @classmethod
    def from_folder(cls, folder: Path) -> ModelConfig:
        """The config of `folder`, with end-of-sequence ids of generation_config.json when it has them.

        Raises ModelFolderError for a missing file, a missing key, or a model this engine's arithmetic does not cover.
        """
        raw = _read_json(folder / "config.json")
        _refuse_unsupported(raw)
        generation = _read_json(folder / "generation_config.json") if _has(folder, "generation_config.json") else {}
        hidden, heads = _integer(raw, "hidden_size"), _integer(raw, "num_attention_heads")
        return cls(
            hidden_size=hidden,
            num_layers=_integer(raw, "num_hidden_layers"),
            num_heads=heads,
            num_kv_heads=_integer(raw, "num_key_value_heads", heads),
            head_dim=_integer(raw, "head_dim", hidden // heads),
            intermediate_size=_integer(raw, "intermediate_size"),
            vocab_size=_integer(raw, "vocab_size"),
            max_position=_integer(raw, "max_position_embeddings", 2048),
            rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
            rope_theta=_rope_theta(raw),
            tie_embeddings=bool(raw.get("tie_word_embeddings", False)),
            bos_token_id=_first(_ids(raw.get("bos_token_id"))),
            eos_token_ids=_ids(generation.get("eos_token_id", raw.get("eos_token_id"))),
        )


def _has(folder: Path, name: str) -> bool:
    return (folder / name).is_file()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelFolderError(f"{path}: no such file; a Hugging Face model folder is expected") from None
    except ValueError as error:
        raise ModelFolderError(f"{path}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ModelFolderError(f"{path}: a JSON object is expected")
    return value


def _integer(raw: dict[str, Any], key: str, default: int | None = None) -> int:
    value = raw.get(key)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool):
        raise ModelFolderError(f"config.json: {key} must be an integer, got {value!r}")
    return value


def _ids(value: object) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(int(item) for item in value) if isinstance(value, list) else (int(str(value)),)


def _first(ids: tuple[int, ...]) -> int | None:
    return ids[0] if ids else None


def _rope_theta(raw: dict[str, Any]) -> float:
    # transformers 5 moved rope_theta into rope_parameters; both spellings are in circulation.
    scaling = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind != "default":
        raise ModelFolderError(f"config.json: rope type {kind!r} is not supported, only 'default'")
    return float(scaling.get("rope_theta", raw.get("rope_theta", 10000.0)))


def _refuse_unsupported(raw: dict[str, Any]) -> None:
    if raw.get("model_type", "llama") != "llama":
        raise ModelFolderError(f"config.json: model_type {raw['model_type']!r} is not supported, only 'llama'")
    if raw.get("hidden_act", "silu") != "silu":
        raise ModelFolderError(f"config.json: hidden_act {raw['hidden_act']!r} is not supported, only 'silu'")
    for key in ("attention_bias", "mlp_bias"):
        if raw.get(key):
            raise ModelFolderError(f"config.json: {key} is not supported")

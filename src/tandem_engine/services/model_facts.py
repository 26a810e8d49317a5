"""What both protocols say about the model, read once from its folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tandem_engine.engine import Engine

__all__ = ["ModelFacts"]


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """`path` is absolute. Token ids that the model does not have are -1, as the engines write it."""

    path: str
    model_type: str
    architectures: tuple[str, ...]
    vocab_size: int
    context: int
    eos_token_ids: tuple[int, ...]
    bos_token_id: int
    pad_token_id: int
    default_sampling_json: str

    @classmethod
    def read(cls, folder: Path, engine: Engine) -> ModelFacts:
        """Facts of the folder that `engine` has loaded."""
        config, generation = _read(folder / "config.json"), _read(folder / "generation_config.json")
        keys = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        defaults = {key: generation[key] for key in keys if key in generation}
        known = engine.model.config
        pad = config.get("pad_token_id", generation.get("pad_token_id"))
        return cls(
            path=str(folder.resolve()),
            model_type=str(config.get("model_type", "llama")),
            architectures=tuple(config.get("architectures", ())),
            vocab_size=known.vocab_size,
            context=engine.context,
            eos_token_ids=known.eos_token_ids,
            bos_token_id=-1 if known.bos_token_id is None else known.bos_token_id,
            pad_token_id=-1 if pad is None else int(pad),
            default_sampling_json=json.dumps(defaults) if defaults else "",
        )


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}

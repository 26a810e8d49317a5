"""Loading a folder: what is accepted, and how a bad one is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tandem_engine.config import ModelConfig, ModelFolderError
from tandem_engine.model import Model


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


def change(folder: Path, **keys: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def test_the_config_is_read(folder: Path) -> None:
    config = ModelConfig.from_folder(folder)
    assert (config.hidden_size, config.head_dim, config.num_kv_heads, config.eos_token_ids) == (128, 64, 1, (0,))


def test_generation_config_decides_the_end_tokens(folder: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 4]}))
    assert ModelConfig.from_folder(folder).eos_token_ids == (3, 4)


def test_rope_theta_is_read_from_rope_parameters(folder: Path) -> None:
    change(folder, rope_theta=None, rope_parameters={"rope_type": "default", "rope_theta": 5000.0})
    assert ModelConfig.from_folder(folder).rope_theta == 5000.0


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"model_type": "qwen2"}, "model_type"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"attention_bias": True}, "attention_bias"),
        ({"rope_scaling": {"type": "yarn"}}, "rope"),
        ({"hidden_size": None}, "hidden_size"),
        ({"num_key_value_heads": 3}, "key/value heads"),
        ({"vocab_size": 500}, "embed_tokens"),
        ({"num_hidden_layers": 4}, r"layers\.3"),
        ({"tie_word_embeddings": False}, "lm_head"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_by_name(folder: Path, keys: dict[str, Any], named: str) -> None:
    change(folder, **keys)
    with pytest.raises(ModelFolderError, match=named):
        Model.from_folder(folder)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(ModelFolderError, match="safetensors" if "safe" in missing else "config.json"):
        Model.from_folder(folder)


def test_a_broken_weights_file_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ModelFolderError, match=r"model\.safetensors"):
        Model.from_folder(folder)


def test_bfloat16_is_refused_with_advice(folder: Path) -> None:
    header = json.dumps({"x": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    with pytest.raises(ModelFolderError, match="float32"):
        Model.from_folder(folder)


def test_weights_split_over_files_are_read(folder: Path, model: Model) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    save_file({name: tensors[name] for name in names[:9]}, folder / "model-00001-of-00002.safetensors")
    save_file({name: tensors[name] for name in names[9:]}, folder / "model-00002-of-00002.safetensors")
    assert np.array_equal(Model.from_folder(folder).weights.layers[2].qkv, model.weights.layers[2].qkv)


def test_a_broken_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelFolderError, match=r"tokenizer\.json"):
        Model.from_folder(folder)

"""A Llama model: one forward pass over rows of many sequences, into and out of paged KV."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from tandem_engine.attention import Span, attend, group_spans
from tandem_engine.config import ModelConfig, ModelFolderError
from tandem_engine.tiles import Floats, linear, pack, rms_norm, rope_tables, rotate, swiglu
from tandem_engine.weights import LayerWeights, Weights, load_weights

__all__ = ["Model", "StepBatch"]


@dataclass(frozen=True, slots=True)
class StepBatch:
    """The rows of one step.

    `token_ids`, `positions`: [n]. `spans` cover rows 0..n-1. Rows `write_rows` store their key and value at
    (`write_pages`, `write_slots`); the others (positions whose KV came from elsewhere) only read. `new_pages` are
    written for the first time. `logit_rows` are the rows whose logits are wanted.
    """

    token_ids: npt.NDArray[np.intp]
    positions: npt.NDArray[np.intp]
    spans: Sequence[Span]
    write_rows: npt.NDArray[np.intp]
    write_pages: npt.NDArray[np.intp]
    write_slots: npt.NDArray[np.intp]
    new_pages: npt.NDArray[np.intp]
    logit_rows: npt.NDArray[np.intp]


class Model:
    """Weights, rotary tables and tokenizer of one folder. Immutable; ranks and threads may share it."""

    def __init__(self, config: ModelConfig, weights: Weights, tokenizer: Tokenizer | None, name: str) -> None:
        self.config = config
        self.weights = weights
        self.tokenizer = tokenizer
        self.name = name
        self._cosines, self._sines = rope_tables(config.max_position, config.head_dim, config.rope_theta)

    @classmethod
    def from_folder(cls, folder: str | Path) -> Model:
        """The model in a Hugging Face folder; tokenizer.json is optional. Raises ModelFolderError."""
        path = Path(folder)
        config = ModelConfig.from_folder(path)
        tokenizer_file = path / "tokenizer.json"
        tokenizer = None
        if tokenizer_file.is_file():
            try:
                tokenizer = Tokenizer.from_file(str(tokenizer_file))
            except Exception as error:  # the tokenizers library raises plain Exception
                raise ModelFolderError(f"{tokenizer_file}: {error}") from None
        return cls(config, load_weights(path, config), tokenizer, path.resolve().name)

    def forward(self, batch: StepBatch, pages: Floats) -> Floats:
        """Logits [len(logit_rows), vocab], float32; keys and values of `write_rows` go into `pages`.

        `pages` is [num_pages, layers, 2, kv_heads, page_size, head_dim]. Every row's logits and KV bits depend on its
        own sequence alone. Not-a-number in a page a row reads makes that row's logits not-a-number, and no other's.
        """
        # A page may come with NaN from its last life, and 0 * NaN is NaN even behind the mask.
        pages[batch.new_pages] = 0.0
        page_size = pages.shape[4]
        groups = group_spans(batch.spans, page_size)
        cosines = self._cosines[batch.positions][:, None]
        sines = self._sines[batch.positions][:, None]
        with np.errstate(all="ignore"):
            x = pack(self.weights.embedding[batch.token_ids])
            for index, layer in enumerate(self.weights.layers):
                keys, values = pages[:, index, 0], pages[:, index, 1]
                query = self._project(x, layer, batch, cosines, sines, keys, values)
                attended = np.zeros(query.shape, dtype=np.float32)
                for group in groups:
                    attend(group, query, keys, values, attended)
                x = x + linear(pack(attended.reshape(len(attended), -1)), layer.attention_out)
                normed = rms_norm(x, layer.mlp_norm, self.config.rms_norm_eps)
                x = x + linear(swiglu(linear(normed, layer.gate_up)), layer.down)
            wanted = x.reshape(-1, self.config.hidden_size)[batch.logit_rows]
            last = rms_norm(pack(wanted), self.weights.final_norm, self.config.rms_norm_eps)
            logits = linear(last, self.weights.head).reshape(-1, self.config.vocab_size)
        return logits[: len(batch.logit_rows)]

    def _project(
        self, x: Floats, layer: LayerWeights, batch: StepBatch, cosines: Floats, sines: Floats, keys: Floats,
        values: Floats,
    ) -> Floats:  # fmt: skip
        config, count = self.config, len(batch.token_ids)
        normed = rms_norm(x, layer.attention_norm, config.rms_norm_eps)
        heads = linear(normed, layer.qkv).reshape(-1, config.num_heads + 2 * config.num_kv_heads, config.head_dim)
        query, key, value = np.split(heads[:count], (config.num_heads, config.num_heads + config.num_kv_heads), axis=1)
        rows = batch.write_rows
        keys[batch.write_pages, :, batch.write_slots] = rotate(key, cosines, sines)[rows]
        values[batch.write_pages, :, batch.write_slots] = value[rows]
        return rotate(query, cosines, sines) * np.float32(config.head_dim**-0.5)

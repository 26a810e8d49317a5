"""A Llama model: one forward pass over rows of many sequences, into and out of paged KV."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from tandem_engine.attention import Span, attend, group_spans
from tandem_engine.config import ModelConfig, ModelFolderError
from tandem_engine.lora import AdapterRows, add_patches
from tandem_engine.tiles import Floats, linear, pack, rms_norm, rope_tables, rotate, swiglu
from tandem_engine.weights import Weights, load_weights

__all__ = ["Model", "StepBatch"]


@dataclass(frozen=True, slots=True)
class StepBatch:
    """The rows of one step.

    `token_ids`, `positions`: [n]. `spans` cover rows 0..n-1. Rows `write_rows` store their key and value at
    (`write_pages`, `write_slots`); the others (positions whose KV came from elsewhere) only read. `new_pages` are
    written for the first time. `logit_rows` are the rows whose logits are wanted, `vector_rows` those whose embedding
    is. `adapters` say which rows are changed by which adapter; no row is in two of them.
    """

    token_ids: npt.NDArray[np.intp]
    positions: npt.NDArray[np.intp]
    spans: Sequence[Span]
    write_rows: npt.NDArray[np.intp]
    write_pages: npt.NDArray[np.intp]
    write_slots: npt.NDArray[np.intp]
    new_pages: npt.NDArray[np.intp]
    logit_rows: npt.NDArray[np.intp]
    vector_rows: npt.NDArray[np.intp] = field(default_factory=lambda: np.zeros(0, dtype=np.intp))
    adapters: Sequence[AdapterRows] = ()


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
        return self.logits(self.hidden(batch, pages), batch.logit_rows)

    def hidden(self, batch: StepBatch, pages: Floats) -> Floats:
        """The rows [at least n, hidden] that leave the last layer, not yet normed; otherwise as `forward`."""
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
                query = self._project(x, index, batch, cosines, sines, keys, values)
                attended = np.zeros(query.shape, dtype=np.float32)
                for group in groups:
                    attend(group, query, keys, values, attended)
                heads = pack(attended.reshape(len(attended), -1))
                mixed = linear(heads, layer.attention_out)
                for use in batch.adapters:
                    add_patches(mixed, heads, use.adapter.layers[index].attention_out, use.rows)
                x = x + mixed
                normed = rms_norm(x, layer.mlp_norm, self.config.rms_norm_eps)
                gate_up = linear(normed, layer.gate_up)
                for use in batch.adapters:
                    add_patches(gate_up, normed, use.adapter.layers[index].gate_up, use.rows)
                inner = swiglu(gate_up)
                fed = linear(inner, layer.down)
                for use in batch.adapters:
                    add_patches(fed, inner, use.adapter.layers[index].down, use.rows)
                x = x + fed
        return x.reshape(-1, self.config.hidden_size)

    def logits(self, hidden: Floats, rows: npt.NDArray[np.intp]) -> Floats:
        """Logits [len(rows), vocab] of `rows` of what `hidden` returned."""
        with np.errstate(all="ignore"):
            last = rms_norm(pack(hidden[rows]), self.weights.final_norm, self.config.rms_norm_eps)
            logits = linear(last, self.weights.head).reshape(-1, self.config.vocab_size)
        return logits[: len(rows)]

    def vectors(self, hidden: Floats, rows: npt.NDArray[np.intp]) -> Floats:
        """Embeddings [len(rows), hidden]: the final normed state of each of `rows`, scaled to length 1.

        Of a prompt's last token that is the embedding that vLLM ("LAST" pooling, activation on) and SGLang
        (`Pooler(PoolingType.LAST, normalize=True)`) make of a decoder model.
        """
        if not len(rows):
            return hidden[rows]
        with np.errstate(all="ignore"):
            last = rms_norm(hidden[rows], self.weights.final_norm, self.config.rms_norm_eps)
            length: Floats = np.sqrt(np.sum(last * last, axis=-1, keepdims=True, dtype=np.float32))
            divisor: Floats = np.maximum(length, np.float32(1e-12))
            vectors: Floats = last / divisor
        return vectors

    def _project(
        self, x: Floats, index: int, batch: StepBatch, cosines: Floats, sines: Floats, keys: Floats,
        values: Floats,
    ) -> Floats:  # fmt: skip
        config, layer, count = self.config, self.weights.layers[index], len(batch.token_ids)
        normed = rms_norm(x, layer.attention_norm, config.rms_norm_eps)
        merged = linear(normed, layer.qkv)
        for use in batch.adapters:
            add_patches(merged, normed, use.adapter.layers[index].qkv, use.rows)
        heads = merged.reshape(-1, config.num_heads + 2 * config.num_kv_heads, config.head_dim)
        query, key, value = np.split(heads[:count], (config.num_heads, config.num_heads + config.num_kv_heads), axis=1)
        rows = batch.write_rows
        keys[batch.write_pages, :, batch.write_slots] = rotate(key, cosines, sines)[rows]
        values[batch.write_pages, :, batch.write_slots] = value[rows]
        return rotate(query, cosines, sines) * np.float32(config.head_dim**-0.5)

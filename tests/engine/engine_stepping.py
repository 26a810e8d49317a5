"""Rows of several sequences fed to `Model.forward` under any schedule, and a plain float64 Llama to compare with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tandem_engine.attention import Span
from tandem_engine.model import Model, StepBatch

PAGE = 16


class Rows:
    """Sequences with their own scattered pages of one store, computed piece by piece."""

    def __init__(self, model: Model, sequences: Sequence[Sequence[int]], page_seed: int = 0) -> None:
        self.model = model
        self.sequences = sequences
        config = model.config
        counts = [-(-len(tokens) // PAGE) for tokens in sequences]
        order = np.random.default_rng(page_seed).permutation(sum(counts))
        self.tables = [tuple(int(page) for page in part) for part in np.split(order, np.cumsum(counts)[:-1])]
        shape = (sum(counts), config.num_layers, 2, config.num_kv_heads, PAGE, config.head_dim)
        self.pages = np.full(shape, np.nan, dtype=np.float32)
        self.done = [0] * len(sequences)

    def step(self, parts: Sequence[tuple[int, int]]) -> npt.NDArray[np.float32]:
        """Compute the next `count` tokens of each (sequence, count); the logits of each part's last row."""
        tokens: list[int] = []
        positions: list[int] = []
        spans: list[Span] = []
        pages: list[int] = []
        last: list[int] = []
        for index, count in parts:
            start = self.done[index]
            spans.append(Span(len(tokens), start, count, self.tables[index]))
            tokens.extend(self.sequences[index][start : start + count])
            positions.extend(range(start, start + count))
            pages.extend(self.tables[index][at // PAGE] for at in range(start, start + count))
            last.append(len(tokens) - 1)
            self.done[index] = start + count
        at = np.array(positions, dtype=np.intp)
        where = np.array(pages, dtype=np.intp)
        batch = StepBatch(
            token_ids=np.array(tokens, dtype=np.intp),
            positions=at,
            spans=tuple(spans),
            write_rows=np.arange(len(tokens), dtype=np.intp),
            write_pages=where,
            write_slots=at % PAGE,
            new_pages=where[at % PAGE == 0],
            logit_rows=np.array(last, dtype=np.intp),
        )
        return self.model.forward(batch, self.pages)

    def kv(self, index: int) -> npt.NDArray[np.float32]:
        """Keys and values of one sequence: [layers, 2, kv_heads, tokens, head_dim]."""
        found = self.pages[list(self.tables[index])]
        pages, layers, two, heads, size, dim = found.shape
        return found.transpose(1, 2, 3, 0, 4, 5).reshape(layers, two, heads, pages * size, dim)[
            :, :, :, : self.done[index]
        ]


def plain_hidden(model: Model, tokens: Sequence[int]) -> npt.NDArray[np.float64]:
    """Normed states of every position after the last layer: dense causal attention in float64, no pages, no tiles."""
    config, weights = model.config, model.weights
    x = weights.embedding[list(tokens)].astype(np.float64)
    count, half = len(tokens), config.head_dim // 2
    angles = np.arange(count)[:, None] * config.rope_theta ** (-np.arange(half) / half)

    def norm(value: npt.NDArray[np.float64], weight: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        normed: npt.NDArray[np.float64] = value / np.sqrt((value**2).mean(-1, keepdims=True) + config.rms_norm_eps)
        return normed * weight

    def turn(value: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        first, second = value[..., :half], value[..., half:]
        cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
        return np.concatenate((first * cos - second * sin, second * cos + first * sin), -1)

    for layer in weights.layers:
        heads = (norm(x, layer.attention_norm) @ layer.qkv).reshape(count, -1, config.head_dim)
        query = turn(heads[:, : config.num_heads])
        key = turn(heads[:, config.num_heads : config.num_heads + config.num_kv_heads])
        value = heads[:, config.num_heads + config.num_kv_heads :]
        share = config.num_heads // config.num_kv_heads
        scores = np.einsum("qhd,khd->hqk", query, np.repeat(key, share, 1)) / config.head_dim**0.5
        scores = np.where(np.tril(np.ones((count, count), dtype=bool)), scores, -np.inf)
        weight = np.exp(scores - scores.max(-1, keepdims=True))
        weight /= weight.sum(-1, keepdims=True)
        x = x + np.einsum("hqk,khd->qhd", weight, np.repeat(value, share, 1)).reshape(count, -1) @ layer.attention_out
        gate, up = np.split(norm(x, layer.mlp_norm) @ layer.gate_up, 2, axis=-1)
        x = x + (gate / (1 + np.exp(-gate)) * up) @ layer.down
    return norm(x, weights.final_norm)


def plain_logits(model: Model, tokens: Sequence[int]) -> npt.NDArray[np.float64]:
    """Logits of every position, by the textbook."""
    logits: npt.NDArray[np.float64] = plain_hidden(model, tokens) @ model.weights.head
    return logits

"""Paged causal attention whose bits depend on a query and its own pages only.

Each query token meets each page in a product of one fixed shape, [group, head_dim] x [head_dim, page_size]. What pages
give is added in page order, starting from the first. A maximum is exact in any order, so subtracting the whole row's
maximum first keeps the order of pages out of the exponentials. Pages after a query's position add an exact zero, so it
does not matter how far a neighbour in the same group reaches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tandem_engine.tiles import Floats

__all__ = ["Group", "Span", "attend", "group_spans"]

Indices = npt.NDArray[np.intp]

# Query rows of one sequence handled together: bounds the scratch of a long prompt (64 rows x 128 pages = 4 MB).
_ROWS = 64
# Pages gathered at once for single-row spans, for the same reason.
_PAGES = 1024


@dataclass(frozen=True, slots=True)
class Span:
    """Rows `first_row .. first_row + count - 1` of a batch: neighbouring positions of one sequence, and its pages."""

    first_row: int
    first_position: int
    count: int
    pages: Sequence[int]


@dataclass(frozen=True, slots=True)
class Group:
    """Rows attended in one go: `rows` and `positions` [sequences, tokens], `pages` [sequences, pages]."""

    rows: Indices
    positions: Indices
    pages: Indices


def group_spans(spans: Sequence[Span], page_size: int) -> tuple[Group, ...]:
    """Groups that cover every row once; only speed depends on how rows are grouped."""
    groups = []
    singles: list[tuple[int, Span]] = []
    for span in spans:
        if span.count == 1:
            singles.append((span.first_position // page_size + 1, span))
            continue
        for offset in range(0, span.count, _ROWS):
            rows = np.arange(offset, min(offset + _ROWS, span.count), dtype=np.intp)
            reach = (span.first_position + int(rows[-1])) // page_size + 1
            groups.append(
                Group(
                    rows=(span.first_row + rows)[None],
                    positions=(span.first_position + rows)[None],
                    pages=np.asarray(span.pages[:reach], dtype=np.intp)[None],
                )
            )
    singles.sort(key=lambda item: item[0])
    begin = 0
    for end in range(1, len(singles) + 1):
        # Rows of similar reach share a rectangle: at most a quarter (or 8 pages) of it is padding.
        smallest = singles[begin][0]
        if end < len(singles):
            reach = singles[end][0]
            if reach <= max(smallest + 8, smallest * 5 // 4) and (end - begin + 1) * reach <= _PAGES:
                continue
        groups.append(_rectangle(singles[begin:end]))
        begin = end
    return tuple(groups)


def _rectangle(singles: Sequence[tuple[int, Span]]) -> Group:
    widest = singles[-1][0]
    pages = np.empty((len(singles), widest), dtype=np.intp)
    for index, (reach, span) in enumerate(singles):
        pages[index, :reach] = span.pages[:reach]
        pages[index, reach:] = span.pages[0]  # masked out whole; a row's own page, so only its own values are near
    return Group(
        rows=np.array([[span.first_row] for _, span in singles], dtype=np.intp),
        positions=np.array([[span.first_position] for _, span in singles], dtype=np.intp),
        pages=pages,
    )


def attend(group: Group, queries: Floats, keys: Floats, values: Floats, out: Floats) -> None:
    """Write the group's rows of `out` [n, heads, head_dim].

    `queries` is [n, heads, head_dim], already scaled; `keys` and `values` are one layer's cache
    [num_pages, kv_heads, page_size, head_dim]. Slots after a query's position may hold anything finite.
    """
    kv_heads, page_size, head_dim = keys.shape[1:]
    sequences, tokens = group.rows.shape
    num_pages = group.pages.shape[1]
    query = queries[group.rows].reshape(sequences, tokens, 1, kv_heads, -1, head_dim)
    key = keys[group.pages].swapaxes(-1, -2)[:, None]
    value = values[group.pages][:, None]

    scores = np.matmul(query, key)  # [sequences, tokens, pages, kv_heads, group, page_size]
    # Only pages from the first query's own one on can hold later positions.
    masked_from = int(group.positions.min()) // page_size
    slots = np.arange(masked_from * page_size, num_pages * page_size).reshape(1, 1, -1, page_size)
    seen = slots <= group.positions[:, :, None, None]
    tail = scores[:, :, masked_from:]
    np.copyto(tail, np.float32(-np.inf), where=~seen[:, :, :, None, None, :])

    weights = np.exp(scores - scores.max(axis=(2, 5), keepdims=True))
    totals = np.add.accumulate(weights.sum(axis=-1), axis=2)[:, :, -1]
    partial = np.matmul(weights, value)  # [sequences, tokens, pages, kv_heads, group, head_dim]
    # The page axis is not the innermost, so the sum runs over pages in order. + 0 makes -0 and +0 one.
    summed = np.add.reduce(partial, axis=2) + np.float32(0.0)
    out[group.rows] = (summed / totals[..., None]).reshape(sequences, tokens, -1, head_dim)

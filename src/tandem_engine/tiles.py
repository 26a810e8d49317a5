"""Batch-invariant arithmetic: a row's bits depend on the row alone.

A matrix product's kernel, and so its rounding, is chosen by the shape of its operands: one row alone differs from the
same row among 63 others. Here every product has exactly TILE rows, zero-padded, so neighbours, batch size and chunking
cannot matter. Everything else works along the last axis of one row.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["TILE", "Floats", "linear", "pack", "rms_norm", "rope_tables", "rotate", "swiglu"]

Floats = npt.NDArray[np.float32]

TILE = 16
"""Rows per product. 16 was measured: 0 of 64 rows differ from any other batching; one row alone wastes 15/16 of it."""


def pack(rows: Floats) -> Floats:
    """`rows` [n, width] as [ceil(n / TILE), TILE, width], padded with zero rows."""
    count, width = rows.shape
    tiles = -(-count // TILE)
    if tiles * TILE == count:
        return rows.reshape(tiles, TILE, width)
    packed = np.zeros((tiles * TILE, width), dtype=np.float32)
    packed[:count] = rows
    return packed.reshape(tiles, TILE, width)


def linear(tiles: Floats, weight: Floats) -> Floats:
    """`tiles` [t, TILE, in] times `weight` [in, out], one product of TILE rows per tile."""
    product: Floats = np.matmul(tiles, weight)
    return product


def rms_norm(x: Floats, weight: Floats, eps: float) -> Floats:
    """Root-mean-square norm over the last axis."""
    mean_square: Floats = np.mean(x * x, axis=-1, keepdims=True, dtype=np.float32)
    normed: Floats = x * (np.float32(1.0) / np.sqrt(mean_square + np.float32(eps))) * weight
    return normed


def swiglu(gate_up: Floats) -> Floats:
    """silu(gate) * up, for `gate_up` [..., 2 * inner] holding gate then up."""
    inner = gate_up.shape[-1] // 2
    gate, up = gate_up[..., :inner], gate_up[..., inner:]
    decay: Floats = np.exp(-gate)
    return gate / (np.float32(1.0) + decay) * up


def rope_tables(max_position: int, head_dim: int, theta: float) -> tuple[Floats, Floats]:
    """Cosines and sines [max_position, head_dim / 2] of the rotary angles, in Llama's half-split order."""
    inverse = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    angles = np.arange(max_position, dtype=np.float64)[:, None] * inverse[None, :]
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotate(x: Floats, cosines: Floats, sines: Floats) -> Floats:
    """`x` [n, heads, head_dim] turned by the angles [n, 1, head_dim / 2]."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    return np.concatenate((first * cosines - second * sines, second * cosines + first * sines), axis=-1)

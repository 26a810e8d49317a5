"""A LoRA adapter and its arithmetic: low-rank products added to a layer's own, for the rows that asked for it.

The products have TILE rows like all others, so a row's bits depend neither on its neighbours nor on their adapters.
Rows without an adapter are not touched at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tandem_engine.tiles import Floats, linear, pack

__all__ = ["Adapter", "AdapterRows", "LayerPatches", "Patch", "add_patches"]


@dataclass(frozen=True, slots=True)
class Patch:
    """One low-rank product: `down` [in, r], then `up` [r, out] with the adapter's scale in it.

    The result belongs to columns `column` .. `column + out - 1` of the (merged) matrix that it changes.
    """

    down: Floats
    up: Floats
    column: int


@dataclass(frozen=True, slots=True)
class LayerPatches:
    """What an adapter changes in one transformer block; names are those of `LayerWeights`."""

    qkv: tuple[Patch, ...] = ()
    attention_out: tuple[Patch, ...] = ()
    gate_up: tuple[Patch, ...] = ()
    down: tuple[Patch, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """A loaded adapter. Immutable: a request that has it goes on with it whatever is unloaded meanwhile.

    `adapter_id` is what requests select it by, `name` what people call it, `digest` the hash of its weights and scale.
    """

    adapter_id: str
    name: str
    path: str
    is_pinned: bool
    digest: str
    layers: tuple[LayerPatches, ...]

    @property
    def cache_key(self) -> str:
        """Part of the block hashes of prompts computed with it: the name alone could mean other weights tomorrow."""
        return f"{self.name}\n{self.digest}"


@dataclass(frozen=True, slots=True)
class AdapterRows:
    """The rows of a step's batch that one adapter applies to."""

    adapter: Adapter
    rows: npt.NDArray[np.intp]


def add_patches(product: Floats, inputs: Floats, patches: Sequence[Patch], rows: npt.NDArray[np.intp]) -> None:
    """Adds to `rows` of `product` [t, TILE, out] what `patches` make of the same rows of `inputs` [t, TILE, in]."""
    if not patches:
        return
    target = product.reshape(-1, product.shape[-1])
    chosen = pack(inputs.reshape(-1, inputs.shape[-1])[rows])
    for patch in patches:
        width = patch.up.shape[1]
        change = linear(linear(chosen, patch.down), patch.up).reshape(-1, width)[: len(rows)]
        target[rows, patch.column : patch.column + width] += change

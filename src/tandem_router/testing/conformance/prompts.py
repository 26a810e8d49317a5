"""Prompts that any model takes: text where its tokenizer loads, else ids from the middle of its vocabulary."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection

__all__ = ["Prompts"]

_USUAL = "count from 7 to 12:"
_DEFAULT_VOCABULARY = 256
_EDGE = 8
"""Ids at both ends of a vocabulary are often special, or not used at all."""


class Prompts:
    """Makes prompts; which ones follows from the seed."""

    def __init__(
        self,
        seed: int,
        vocab_size: int | None,
        special: Collection[int],
        encode: Callable[[str], tuple[int, ...]] | None,
    ) -> None:
        """Args:
        vocab_size: None = not known, so only small ids are used.
        special: ids that must not be in a prompt of ids.
        encode: the model's tokenizer, or None.
        """
        size = vocab_size or _DEFAULT_VOCABULARY
        edge = _EDGE if size > 4 * _EDGE else 0
        self._ids = [one for one in range(edge, size - edge) if one not in special] or [0]
        self._size = size
        self._encode = encode
        self._random = random.Random(seed)
        self.usual = self._of_text(_USUAL) or tuple(self._ids[at * 7 % len(self._ids)] for at in range(12))
        """Always the same short prompt."""

    def fresh(self, tokens: int) -> tuple[int, ...]:
        """A prompt of exactly so many tokens that nobody has sent before, so that no cache has it."""
        made: list[int] = []
        while len(made) < tokens:
            first = self._random.randrange(1, 90)
            text = f"{first * 37 % 89}. count from {first} to {first + self._random.randrange(3, 9)}: "
            made += self._of_text(text) or self._random.choices(self._ids, k=tokens)
        return tuple(made[:tokens])

    def _of_text(self, text: str) -> tuple[int, ...]:
        ids = self._encode(text) if self._encode is not None else ()
        return ids if all(0 <= one < self._size for one in ids) else ()

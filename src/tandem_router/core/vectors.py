"""What the router does to an engine's vector before a client gets it."""

from __future__ import annotations

import math

from tandem_router.errors import Reason, TandemError

__all__ = ["shaped"]

_IS_ONE = 1e-6
"""A vector that an engine scaled to length 1 in float32 is this close; it goes on bit for bit."""


def shaped(values: tuple[float, ...], *, dimensions: int | None, normalize: bool) -> tuple[float, ...]:
    """The first `dimensions` values (None: all), scaled to length 1 where wanted; a vector of zeros stays one.

    Raises TandemError: INVALID_REQUEST when the vector has fewer values, ENGINE_PROTOCOL_ERROR for one with a value
    that is not finite.
    """
    if dimensions is not None and dimensions > len(values):
        sentence = f"It is {dimensions}, and the model's vectors have {len(values)} values."
        raise TandemError(Reason.INVALID_REQUEST, sentence, field="dimensions")
    kept = values[:dimensions]
    length = math.hypot(*kept)
    if not math.isfinite(length):
        raise TandemError(Reason.ENGINE_PROTOCOL_ERROR, "the engine answered Embed with a value that is not finite")
    if not normalize or length == 0 or abs(length - 1) < _IS_ONE:
        return kept
    return tuple([value / length for value in kept])

"""Log probabilities in the shape that four of the five protocols share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tandem_router.testing.grpc_engines.archives import FIRST_LETTER
from tandem_router.testing.grpc_engines.work import LETTERS, logprob

__all__ = ["fill_input", "fill_output", "top_ids"]


def top_ids(count: int) -> tuple[int, ...]:
    """The alternatives that every position has, most likely first."""
    return tuple(FIRST_LETTER + number for number in range(min(count, LETTERS)))


def fill_output(proto: Any, ids: Sequence[int], top: int) -> None:
    """`OutputLogProbs`, one row per token."""
    proto.token_ids.extend(ids)
    proto.token_logprobs.extend(logprob(token) for token in ids)
    _fill_top(proto, len(ids), top)


def fill_input(proto: Any, prompt: Sequence[int], top: int) -> None:
    """`InputLogProbs`, one row per prompt token; the first has no value."""
    proto.token_ids.extend(prompt)
    for position, token in enumerate(prompt):
        row = proto.token_logprobs.add()
        if position:
            row.value = logprob(token)
    _fill_top(proto, len(prompt), top)


def _fill_top(proto: Any, rows: int, top: int) -> None:
    for _ in range(rows if top else 0):
        ids = top_ids(top)
        proto.top_logprobs.add(token_ids=ids, values=[logprob(token) for token in ids])

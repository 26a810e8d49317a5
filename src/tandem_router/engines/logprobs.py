"""Log probabilities as engines lay them out: parallel columns, or one row per token."""

from __future__ import annotations

from typing import Any

from tandem_router.model.stream import TokenLogprob

__all__ = ["column_logprobs", "input_logprobs", "row_logprobs"]


def column_logprobs(message: Any, count: int, most: int) -> tuple[TokenLogprob, ...]:
    """The last `count` tokens of `output_logprobs {token_logprobs, token_ids, top_logprobs}`.

    The last, because an end may hold the rows of tokens that chunks carried before. most: alternatives per token; an
    engine that has to be asked for one more sends one too many.
    """
    columns = message.output_logprobs
    values = columns.token_logprobs[-count:]
    ids = columns.token_ids[-count:]
    tops = columns.top_logprobs[-count:] if most else ()
    return tuple(
        TokenLogprob(token_id, value, () if top is None else _pairs(top, most))
        for token_id, value, top in zip(ids, values, tops or [None] * len(ids), strict=False)
    )


def row_logprobs(message: Any, count: int, most: int) -> tuple[TokenLogprob, ...]:
    """The last `count` tokens of `repeated logprobs {token_id, logprob, top_logprobs}`.

    A row may hold the token itself beside the likeliest ones, in any order.
    """
    return tuple(
        TokenLogprob(
            row.token_id,
            row.logprob,
            tuple((top.token_id, top.logprob) for top in sorted(row.top_logprobs, key=lambda top: -float(top.logprob)))[
                :most
            ],
        )
        for row in message.logprobs[-count:]
    )


def input_logprobs(message: Any, most: int) -> tuple[TokenLogprob, ...]:
    """One row per prompt token, empty where the message has none; the first token has no value."""
    if not message.HasField("input_logprobs"):
        return ()
    columns = message.input_logprobs
    tops = columns.top_logprobs or [None] * len(columns.token_ids)
    return tuple(
        TokenLogprob(
            token_id, value.value if value.HasField("value") else None, () if top is None else _pairs(top, most)
        )
        for token_id, value, top in zip(columns.token_ids, columns.token_logprobs, tops, strict=False)
    )


def _pairs(top: Any, most: int) -> tuple[tuple[int, float], ...]:
    """The likeliest first: vLLM puts the token itself first, wherever it ranks."""
    pairs = sorted(zip(top.token_ids, top.values, strict=False), key=lambda pair: -pair[1])
    return tuple(pairs[:most])

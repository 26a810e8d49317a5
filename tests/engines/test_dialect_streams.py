"""What every dialect makes of its engine's stream, in that engine's own habits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st
from legs import (
    AGGREGATE,
    every_dialect,
    mlx_chunk,
    mlx_complete,
    sampled,
    sglang_chunk,
    sglang_complete,
    tokenspeed_chunk,
    tokenspeed_complete,
    trtllm_chunk,
    trtllm_complete,
    vllm_chunk,
    vllm_complete,
)

from tandem_router.engines.contract import Dialect
from tandem_router.errors import Reason
from tandem_router.model.failure import EngineFailure
from tandem_router.model.request import LegRequest
from tandem_router.model.spec import RuntimeType
from tandem_router.model.stream import EngineEnd, EngineItem, FinishReason, TokenLogprob

Habit = tuple[
    Callable[[list[int], int, int], Message],
    Callable[[list[int], list[int], str, int], Message],
]
"""A chunk from (its ids, the running total, index); an end from (all ids, the last chunk's, reason, index)."""

HABITS: dict[RuntimeType, Habit] = {
    RuntimeType.SGLANG: (
        sglang_chunk,
        lambda ids, last, reason, index: sglang_complete(last, len(ids), reason, index),
    ),
    RuntimeType.VLLM: (
        lambda ids, total, index: vllm_chunk(ids, index),
        lambda ids, last, reason, index: vllm_complete(last, reason, index),
    ),
    RuntimeType.TRTLLM: (
        trtllm_chunk,
        lambda ids, last, reason, index: trtllm_complete(ids, reason, index),
    ),
    RuntimeType.TOKENSPEED: (
        tokenspeed_chunk,
        lambda ids, last, reason, index: tokenspeed_complete(last, len(ids), reason, index),
    ),
    RuntimeType.MLX: (
        lambda ids, total, index: mlx_chunk(ids, total),
        lambda ids, last, reason, index: mlx_complete([] if last else ids, len(ids), reason),
    ),
}


def streamed(dialect: Dialect, chunks: Sequence[list[int]], index: int = 0, reason: str = "length") -> list[Message]:
    """One choice's messages in the engine's own habits."""
    chunk, complete = HABITS[dialect.runtime_type]
    messages: list[Message] = []
    ids: list[int] = []
    for one in chunks:
        ids += one
        messages.append(chunk(one, len(ids), index))
    return [*messages, complete(ids, chunks[-1] if chunks else [], reason, index)]


def decoded(dialect: Dialect, leg: LegRequest, messages: Sequence[Message]) -> list[EngineItem]:
    decoder = dialect.decoder(leg)
    found = [item for message in messages if (item := decoder.decode(message)) is not None]
    decoder.end_of_stream()
    return found


def ids_of(items: Sequence[EngineItem], choice: int) -> list[int]:
    return [token for item in items if item.choice == choice for token in item.token_ids]


def splits() -> st.SearchStrategy[list[list[int]]]:
    """A token list cut into chunks; few different ids, so that repetitions in the end look like new tokens."""
    return st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), min_size=1, max_size=6)


@every_dialect
@settings(deadline=None, max_examples=60)
@given(chunks=splits())
def test_tokens_are_delivered_once_however_they_are_split(dialect: Dialect, chunks: list[list[int]]) -> None:
    items = decoded(dialect, AGGREGATE, streamed(dialect, chunks))
    ids = [token for chunk in chunks for token in chunk]
    [end] = [item for item in items if isinstance(item, EngineEnd)]
    assert (ids_of(items, 0), end.completion_tokens, end.reason) == (ids, len(ids), FinishReason.LENGTH)


@every_dialect
@settings(deadline=None, max_examples=60)
@given(ids=st.lists(st.integers(0, 2), max_size=12))
def test_answer_that_is_not_streamed_is_delivered_whole(dialect: Dialect, ids: list[int]) -> None:
    _, complete = HABITS[dialect.runtime_type]
    # Without chunks the engines that repeat the last one send all there is.
    last = [] if dialect.runtime_type is RuntimeType.MLX else ids
    items = decoded(dialect, replace(AGGREGATE, is_streaming=False), [complete(ids, last, "stop", 0)])
    assert ids_of(items, 0) == ids


@every_dialect
@settings(deadline=None, max_examples=60)
@given(first=splits(), second=splits(), data=st.data())
def test_interleaved_choices_are_told_apart(
    dialect: Dialect, first: list[list[int]], second: list[list[int]], data: st.DataObject
) -> None:
    if dialect.traits.max_choices == 1:
        return
    queues = [streamed(dialect, first, 0), streamed(dialect, second, 1)]
    messages: list[Message] = []
    while any(queues):
        queue = data.draw(st.sampled_from([queue for queue in queues if queue]))
        messages.append(queue.pop(0))
    items = decoded(dialect, sampled(AGGREGATE, n=2), messages)
    for choice, chunks in enumerate((first, second)):
        assert ids_of(items, choice) == [token for chunk in chunks for token in chunk]


@every_dialect
@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("abort", Reason.ENGINE_ABORTED),
        ("cancelled", Reason.ENGINE_ABORTED),
        ("timeout", Reason.ENGINE_ABORTED),
        ("error", Reason.ENGINE_ERROR),
        ("", Reason.ENGINE_PROTOCOL_ERROR),
        ("whim", Reason.ENGINE_PROTOCOL_ERROR),
    ],
)
def test_bad_end_under_ok_is_a_failure(dialect: Dialect, word: str, reason: Reason) -> None:
    with pytest.raises(EngineFailure) as caught:
        decoded(dialect, AGGREGATE, streamed(dialect, [[1], [2]], reason=word))
    assert caught.value.reason is reason


@every_dialect
@pytest.mark.parametrize("word", ["stop", "length"])
def test_good_end_is_an_end(dialect: Dialect, word: str) -> None:
    items = decoded(dialect, AGGREGATE, streamed(dialect, [[1], [2]], reason=word))
    assert [item.reason for item in items if isinstance(item, EngineEnd)] == [FinishReason[word.upper()]]


@every_dialect
def test_stream_that_owes_an_end_is_never_a_good_one(dialect: Dialect) -> None:
    with pytest.raises(EngineFailure, match="without the end of choice 0") as caught:
        decoded(dialect, AGGREGATE, streamed(dialect, [[1], [2]])[:-1])
    # The one engine that ends an aborted stream so is believed to have aborted it.
    is_silent = dialect.runtime_type is RuntimeType.MLX
    assert caught.value.reason is (Reason.ENGINE_ABORTED if is_silent else Reason.ENGINE_PROTOCOL_ERROR)


@every_dialect
def test_matched_stop_token_survives(dialect: Dialect) -> None:
    [*_, end] = streamed(dialect, [[1], [9]], reason="stop")
    complete: Any = end.complete
    field = "matched_token_id" if hasattr(complete, "matched_token_id") else "matched_stop_token_id"
    setattr(complete, field, 0)
    items = decoded(dialect, AGGREGATE, [*streamed(dialect, [[1], [9]])[:-1], end])
    assert [item.matched_stop for item in items if isinstance(item, EngineEnd)] == [0]


def with_logprobs(message: Message, ids: Sequence[int]) -> Message:
    """A chunk or an end, in the layout of its protocol: each token at -0.5, then 8 at -2."""
    body: Any = getattr(message, message.WhichOneof("response"))
    for token in ids:
        if hasattr(body, "output_logprobs"):
            rows = body.output_logprobs
            rows.token_ids.append(token)
            rows.token_logprobs.append(-0.5)
            rows.top_logprobs.add(token_ids=[token, 8], values=[-0.5, -2.0])
        else:
            row = body.logprobs.add(token_id=token, logprob=-0.5)
            row.top_logprobs.add(token_id=8, logprob=-2.0)
            row.top_logprobs.add(token_id=token, logprob=-0.5)
    return message


@every_dialect
def test_alternatives_come_likeliest_first_whatever_the_engine_puts_first(dialect: Dialect) -> None:
    chunk: Any = streamed(dialect, [[4]])[0]
    tops = {4: -3.0, 8: -0.25, 9: -1.0}
    if hasattr(chunk.chunk, "output_logprobs"):
        rows = chunk.chunk.output_logprobs
        rows.token_ids.append(4)
        rows.token_logprobs.append(-3.0)
        rows.top_logprobs.add(token_ids=list(tops), values=list(tops.values()))
    else:
        row = chunk.chunk.logprobs.add(token_id=4, logprob=-3.0)
        for token, value in tops.items():
            row.top_logprobs.add(token_id=token, logprob=value)
    item = dialect.decoder(replace(AGGREGATE, output_logprobs=True, top_logprobs=2)).decode(chunk)
    assert item is not None
    assert item.logprobs == (TokenLogprob(4, -3.0, ((8, -0.25), (9, -1.0))),)


@every_dialect
@pytest.mark.parametrize("top", [0, 1, 2])
def test_logprobs_have_one_shape(dialect: Dialect, top: int) -> None:
    messages = streamed(dialect, [[1], [2, 3]])
    for message, ids in zip(messages, ([1], [2, 3], [2, 3]), strict=True):
        with_logprobs(message, ids)
    items = decoded(dialect, replace(AGGREGATE, output_logprobs=True, top_logprobs=top), messages)
    assert [row for item in items for row in item.logprobs] == [
        TokenLogprob(token, -0.5, ((token, -0.5), (8, -2.0))[:top]) for token in (1, 2, 3)
    ]


@every_dialect
def test_logprobs_that_nobody_asked_for_are_dropped(dialect: Dialect) -> None:
    items = decoded(dialect, AGGREGATE, [with_logprobs(message, [1]) for message in streamed(dialect, [[1]])])
    assert not any(item.logprobs for item in items)

"""Streams that a decoder could take for others: what each check of it is there for, alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from google.protobuf.message import Message
from legs import (
    AGGREGATE,
    HANDOFF_PREFILL,
    MOONCAKE_PREFILL,
    sampled,
    sglang_chunk,
    sglang_complete,
    vllm_chunk,
    vllm_complete,
)
from smg_grpc_proto.generated import sglang_scheduler_pb2 as sglang

from tandem_router.engines.contract import Dialect
from tandem_router.engines.mlx import MlxDialect
from tandem_router.engines.sglang import SglangDialect
from tandem_router.engines.vllm import VllmDialect
from tandem_router.errors import Code, Reason, TandemError
from tandem_router.model.failure import EngineFailure
from tandem_router.model.request import LegRequest
from tandem_router.model.spec import RuntimeType
from tandem_router.model.stream import EngineChunk, EngineEnd, EngineItem, FinishReason, TokenLogprob
from tandem_router.model.worker import WorkerFacts

SGLANG, VLLM, MLX = SglangDialect(), VllmDialect(), MlxDialect()
TWO = sampled(AGGREGATE, n=2)
STOPS_AT_5 = sampled(AGGREGATE, stop_token_ids=(5,))


def decoded(dialect: Dialect, leg: LegRequest, *responses: Message) -> list[EngineItem]:
    decoder = dialect.decoder(leg)
    return [item for response in responses if (item := decoder.decode(response)) is not None]


def test_second_end_of_a_choice_never_stands_for_another_choices() -> None:
    decoder = VLLM.decoder(TWO)
    decoder.decode(vllm_chunk([1]))
    decoder.decode(vllm_complete([1]))
    with pytest.raises(EngineFailure, match="choice 0 ended twice") as caught:
        decoder.decode(vllm_complete([1]))
    assert (caught.value.reason, caught.value.code) == (Reason.ENGINE_PROTOCOL_ERROR, Code.INTERNAL)
    assert not decoder.is_done


def test_choice_that_was_ended_here_counts_what_was_kept() -> None:
    leg = replace(STOPS_AT_5, sampling=replace(STOPS_AT_5.sampling, ignore_eos=True))
    [_, end] = decoded(SGLANG, leg, sglang_chunk([1], 1), sglang_chunk([2, 5, 6, 7], 5))
    assert isinstance(end, EngineEnd)
    assert (end.token_ids, end.completion_tokens, end.prompt_tokens) == ((2, 5), 3, 3)


@pytest.mark.parametrize(
    ("dialect", "leg", "chunk", "complete"),
    [
        (SGLANG, STOPS_AT_5, sglang_chunk([5, 6], 2), sglang_complete([5, 6], 2)),
        (
            VLLM,
            replace(STOPS_AT_5, sampling=replace(STOPS_AT_5.sampling, ignore_eos=True)),
            vllm_chunk([5, 6]),
            vllm_complete([5, 6]),
        ),
    ],
    ids=["sglang heeds eos", "vllm heeds stops"],
)
def test_engine_that_heeds_its_stops_is_believed(
    dialect: Dialect, leg: LegRequest, chunk: Message, complete: Message
) -> None:
    assert [type(item) for item in decoded(dialect, leg, chunk, complete)] == [EngineChunk, EngineEnd]


@pytest.mark.parametrize("min_tokens", [2, 4])
def test_stop_token_before_min_tokens_ends_nothing(min_tokens: int) -> None:
    leg = sampled(AGGREGATE, stop_token_ids=(5,), ignore_eos=True, min_tokens=min_tokens)
    found = decoded(
        SGLANG, leg, sglang_chunk([5], 1), sglang_chunk([1, 2], 3), sglang_chunk([5, 6], 5), sglang_chunk([7], 6)
    )
    assert [item.token_ids for item in found] == [(5,), (1, 2), (5,)]
    last = found[-1]
    assert isinstance(last, EngineEnd)
    assert (last.reason, last.completion_tokens) == (FinishReason.STOP, 4)


def test_stop_token_before_min_tokens_in_an_end_is_no_stop() -> None:
    leg = sampled(AGGREGATE, stop_token_ids=(5,), ignore_eos=True, min_tokens=3)
    [end] = decoded(SGLANG, leg, sglang_complete([5, 1], 2))
    assert isinstance(end, EngineEnd)
    assert (end.token_ids, end.reason) == ((5, 1), FinishReason.LENGTH)


@pytest.mark.parametrize("facts", [None, WorkerFacts(RuntimeType.MLX, "m")], ids=["nothing said", "no size said"])
@pytest.mark.parametrize(("asked", "is_sent"), [(256, True), (257, False)])
def test_mlx_top_k_that_may_stop_its_thread_is_refused(facts: WorkerFacts | None, asked: int, is_sent: bool) -> None:
    build: Callable[[], Message] = lambda: MLX.generate_request(sampled(AGGREGATE, top_k=asked), facts)  # noqa: E731
    if is_sent:
        assert build().sampling_params.top_k == asked  # type: ignore[attr-defined]  # of MLX's message
        return
    with pytest.raises(TandemError) as caught:
        build()
    assert (caught.value.reason, caught.value.field) == (Reason.RUNTIME_CANNOT_CARRY_FIELD, "sampling.top_k")


def with_rows(response: sglang.GenerateResponse, *, prompt: float | None = None, cached: int = 0) -> Message:
    """The response with log probabilities of its tokens (-id), of a prompt of one token, and a count of cached ones."""
    message = response.chunk if response.HasField("chunk") else response.complete
    message.cached_tokens = cached
    ids = response.chunk.token_ids if response.HasField("chunk") else response.complete.output_ids
    message.output_logprobs.token_ids.extend(ids)
    message.output_logprobs.token_logprobs.extend([-float(token) for token in ids])
    if prompt is not None:
        message.input_logprobs.token_ids.append(5)
        message.input_logprobs.token_logprobs.add(value=prompt)
    return response


WANTS_ALL = replace(
    sampled(AGGREGATE, stop_token_ids=(5,), ignore_eos=True), output_logprobs=True, prompt_logprobs=True, top_logprobs=0
)


def test_choice_that_was_ended_here_loses_nothing_of_what_its_chunk_told() -> None:
    [end] = decoded(SGLANG, WANTS_ALL, with_rows(sglang_chunk([2, 5, 6], 3), prompt=-0.5, cached=2))
    assert isinstance(end, EngineEnd)
    assert (end.cached_tokens, end.prompt_logprobs) == (2, (TokenLogprob(5, -0.5),))
    assert end.logprobs == (TokenLogprob(2, -2.0), TokenLogprob(5, -5.0))


def test_end_tells_what_the_prompt_took() -> None:
    [_, end] = decoded(SGLANG, AGGREGATE, sglang_chunk([1], 1), with_rows(sglang_complete([1], 1), cached=2))
    assert isinstance(end, EngineEnd)
    assert (end.prompt_tokens, end.cached_tokens, end.logprobs) == (3, 2, ())


def test_prompt_logprobs_are_those_of_choice_0_whoever_speaks_first() -> None:
    leg = replace(TWO, prompt_logprobs=True)
    found = decoded(
        SGLANG, leg, with_rows(sglang_chunk([1], 1, 1), prompt=-9.0), with_rows(sglang_chunk([2], 1), prompt=-0.5)
    )
    assert [(item.choice, item.prompt_logprobs) for item in found] == [(1, ()), (0, (TokenLogprob(5, -0.5),))]


@pytest.mark.parametrize("end", [sglang_complete([], 0), sglang_complete([2], 0), sglang_complete([1, 2], 0)])
def test_count_that_is_left_out_is_no_lost_token(end: Message) -> None:
    *_, last = decoded(SGLANG, AGGREGATE, sglang_chunk([1], 0), sglang_chunk([2], 0), end)
    assert isinstance(last, EngineEnd)
    assert (last.token_ids, last.completion_tokens) == ((), 2)


@pytest.mark.parametrize("count", [1, 3], ids=["fewer", "more"])
def test_chunk_whose_count_is_not_what_came_is_a_protocol_error(count: int) -> None:
    with pytest.raises(EngineFailure, match=f"has 2 tokens but counts {count}") as caught:
        decoded(SGLANG, AGGREGATE, sglang_chunk([1, 2], count))
    assert caught.value.reason is Reason.ENGINE_PROTOCOL_ERROR


@pytest.mark.parametrize("count", [1, 5], ids=["fewer than came", "more than are there"])
def test_end_whose_count_cannot_be_made_up_is_a_protocol_error(count: int) -> None:
    with pytest.raises(EngineFailure, match=f"counts {count} tokens, 2 came in chunks and 2 with the end") as caught:
        decoded(SGLANG, AGGREGATE, sglang_chunk([1, 2], 2), sglang_complete([1, 2], count))
    assert caught.value.reason is Reason.ENGINE_PROTOCOL_ERROR


@pytest.mark.parametrize(
    ("reason", "told", "code"),
    [("error", Reason.ENGINE_ERROR, Code.OK), ("abort", Reason.ENGINE_ABORTED, Code.ABORTED)],
)
def test_bad_end_of_a_prefill_is_its_own_and_no_failed_pull(reason: str, told: Reason, code: Code) -> None:
    with pytest.raises(EngineFailure) as caught:
        decoded(VLLM, replace(HANDOFF_PREFILL, handoff=MOONCAKE_PREFILL), vllm_complete([], reason))
    assert (caught.value.reason, caught.value.code) == (told, code)


@pytest.mark.parametrize("params", [None, "", "{}"])
def test_params_that_were_not_returned_are_told_from_empty_ones(params: str | None) -> None:
    [end] = decoded(VLLM, HANDOFF_PREFILL, vllm_complete([1], params=params))
    assert isinstance(end, EngineEnd)
    assert end.transfer_params == params

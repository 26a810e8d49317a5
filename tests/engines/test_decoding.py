"""Each habit of an engine's stream, evened out; and each way of ending badly, raised."""

from __future__ import annotations

from dataclasses import replace

import pytest
from legs import (
    AGGREGATE,
    HANDOFF_DECODE,
    HANDOFF_PREFILL,
    PARAMS,
    RENDEZVOUS_DECODE,
    sampled,
    sglang_chunk,
    sglang_complete,
    vllm_chunk,
    vllm_complete,
)
from smg_grpc_proto.generated import sglang_scheduler_pb2 as sglang

from tandem_router.engines.contract import Dialect
from tandem_router.engines.sglang import SglangDialect
from tandem_router.engines.vllm import VllmDialect
from tandem_router.errors import Code, Reason
from tandem_router.model.failure import EngineFailure
from tandem_router.model.request import LegRequest
from tandem_router.model.stream import EngineEnd, EngineItem, FinishReason, TokenLogprob

SGLANG, VLLM = SglangDialect(), VllmDialect()


def items(dialect: Dialect, leg: LegRequest, responses: list[object]) -> list[EngineItem]:
    decoder = dialect.decoder(leg)
    return [item for response in responses if (item := decoder.decode(response)) is not None]


def tokens(found: list[EngineItem], choice: int = 0) -> list[int]:
    return [token for item in found if item.choice == choice for token in item.token_ids]


def end(found: list[EngineItem]) -> EngineEnd:
    [last] = [item for item in found if isinstance(item, EngineEnd)]
    return last


def failure(dialect: Dialect, leg: LegRequest, responses: list[object]) -> EngineFailure:
    with pytest.raises(EngineFailure) as caught:
        items(dialect, leg, responses)
    return caught.value


STREAMS = {
    "sglang running totals, end repeats last chunk": (
        SGLANG,
        [sglang_chunk([1], 1), sglang_chunk([2, 3], 3), sglang_complete([2, 3], 3)],
    ),
    "sglang end repeats everything": (
        SGLANG,
        [sglang_chunk([1], 1), sglang_chunk([2, 3], 3), sglang_complete([1, 2, 3], 3)],
    ),
    "sglang end repeats nothing": (SGLANG, [sglang_chunk([1], 1), sglang_chunk([2, 3], 3), sglang_complete([], 3)]),
    "sglang end brings the rest": (SGLANG, [sglang_chunk([1], 1), sglang_complete([1, 2, 3], 3)]),
    "sglang end brings only the rest": (SGLANG, [sglang_chunk([1], 1), sglang_complete([2, 3], 3)]),
    "sglang not streamed": (SGLANG, [sglang_complete([1, 2, 3], 3)]),
    "sglang empty chunks": (SGLANG, [sglang_chunk([], 0), sglang_chunk([1, 2, 3], 3), sglang_complete([1, 2, 3], 3)]),
    "vllm own counts, end repeats last chunk": (
        VLLM,
        [vllm_chunk([1]), vllm_chunk([2, 3]), vllm_complete([2, 3])],
    ),
    "vllm end repeats everything": (VLLM, [vllm_chunk([1]), vllm_chunk([2, 3]), vllm_complete([1, 2, 3])]),
    "vllm end repeats nothing": (VLLM, [vllm_chunk([1]), vllm_chunk([2, 3]), vllm_complete([])]),
    "vllm not streamed": (VLLM, [vllm_complete([1, 2, 3])]),
    "vllm repeated token": (VLLM, [vllm_chunk([1, 2]), vllm_chunk([3]), vllm_complete([3])]),
}


@pytest.mark.parametrize("name", STREAMS)
def test_every_token_is_delivered_once(name: str) -> None:
    dialect, responses = STREAMS[name]
    assert tokens(items(dialect, AGGREGATE, list(responses))) == [1, 2, 3]


@pytest.mark.parametrize("name", STREAMS)
def test_end_counts_what_was_delivered(name: str) -> None:
    dialect, responses = STREAMS[name]
    assert end(items(dialect, AGGREGATE, list(responses))).completion_tokens == 3


def test_same_token_twice_is_not_a_repetition() -> None:
    assert tokens(items(SGLANG, AGGREGATE, [sglang_chunk([7], 1), sglang_chunk([7], 2), sglang_complete([7], 2)])) == [
        7,
        7,
    ]


def test_choices_interleave_by_index() -> None:
    found = items(
        VLLM,
        sampled(AGGREGATE, n=2),
        [vllm_chunk([1], 0), vllm_chunk([9], 1), vllm_complete([9], index=1), vllm_chunk([2], 0), vllm_complete([2])],
    )
    assert (tokens(found, 0), tokens(found, 1)) == ([1, 2], [9])


def test_stream_is_done_only_after_every_choice_ended() -> None:
    decoder = VLLM.decoder(sampled(AGGREGATE, n=2))
    decoder.decode(vllm_complete([1], index=1))
    assert not decoder.is_done


def test_handoff_prefill_owes_one_end_whatever_n_is() -> None:
    decoder = VLLM.decoder(sampled(HANDOFF_PREFILL, n=3))
    decoder.decode(vllm_complete([1]))
    assert decoder.is_done


def test_prefill_end_carries_transfer_params_verbatim() -> None:
    assert end(items(VLLM, HANDOFF_PREFILL, [vllm_complete([1], params=PARAMS)])).transfer_params == PARAMS


@pytest.mark.parametrize("dialect", [SGLANG, VLLM])
def test_stream_without_its_ends_is_a_protocol_error(dialect: Dialect) -> None:
    decoder = dialect.decoder(AGGREGATE)
    with pytest.raises(EngineFailure, match="without the end of choice 0"):
        decoder.end_of_stream()


BAD: dict[str, tuple[Dialect, LegRequest, list[object], Reason]] = {
    "abort under OK": (VLLM, AGGREGATE, [vllm_complete([], "abort")], Reason.ENGINE_ABORTED),
    "sglang abort under OK": (SGLANG, AGGREGATE, [sglang_complete([], 0, "abort")], Reason.ENGINE_ABORTED),
    "error under OK": (VLLM, AGGREGATE, [vllm_complete([], "error")], Reason.ENGINE_ERROR),
    "error of a prefill": (VLLM, HANDOFF_PREFILL, [vllm_complete([], "error")], Reason.ENGINE_ERROR),
    "error of a pulling decode": (VLLM, HANDOFF_DECODE, [vllm_complete([], "error")], Reason.KV_TRANSFER_FAILED),
    "unknown reason": (VLLM, AGGREGATE, [vllm_complete([1], "whim")], Reason.ENGINE_PROTOCOL_ERROR),
    "no reason": (SGLANG, AGGREGATE, [sglang_complete([1], 1, "")], Reason.ENGINE_PROTOCOL_ERROR),
    "empty response": (SGLANG, AGGREGATE, [sglang.GenerateResponse()], Reason.ENGINE_PROTOCOL_ERROR),
    "choice not asked for": (VLLM, AGGREGATE, [vllm_chunk([1], 1)], Reason.ENGINE_PROTOCOL_ERROR),
    "chunk after the end": (
        VLLM,
        sampled(AGGREGATE, n=2),
        [vllm_complete([1]), vllm_chunk([2])],
        Reason.ENGINE_PROTOCOL_ERROR,
    ),
    "two ends": (VLLM, sampled(AGGREGATE, n=2), [vllm_complete([1])] * 2, Reason.ENGINE_PROTOCOL_ERROR),
    "lost token": (SGLANG, AGGREGATE, [sglang_chunk([1], 1), sglang_chunk([3], 3)], Reason.ENGINE_PROTOCOL_ERROR),
    "lost token at the end": (
        SGLANG,
        AGGREGATE,
        [sglang_chunk([1], 1), sglang_complete([4], 4)],
        Reason.ENGINE_PROTOCOL_ERROR,
    ),
    "end counts less than came": (
        SGLANG,
        AGGREGATE,
        [sglang_chunk([1, 2], 2), sglang_complete([1], 1)],
        Reason.ENGINE_PROTOCOL_ERROR,
    ),
    "end with foreign ids": (VLLM, AGGREGATE, [vllm_chunk([1]), vllm_complete([2])], Reason.ENGINE_PROTOCOL_ERROR),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_stream_fails_with_its_reason(name: str) -> None:
    dialect, leg, responses, reason = BAD[name]
    assert failure(dialect, leg, responses).reason is reason


def test_sglang_stop_token_under_ignore_eos_ends_the_choice_here() -> None:
    leg = sampled(AGGREGATE, ignore_eos=True, stop_token_ids=(5,))
    found = items(SGLANG, leg, [sglang_chunk([1], 1), sglang_chunk([2, 5, 6], 4), sglang_chunk([7], 5)])
    assert (tokens(found), end(found).reason, end(found).matched_stop) == ([1, 2, 5], FinishReason.STOP, 5)


@pytest.mark.parametrize("before", [[], [sglang_chunk([1], 1)]], ids=["all in the end", "the rest in the end"])
def test_stop_token_in_an_end_cuts_off_what_follows_it(before: list[object]) -> None:
    leg = replace(sampled(AGGREGATE, ignore_eos=True, stop_token_ids=(5, 6)), output_logprobs=True, is_streaming=False)
    response = sglang_complete([1, 2, 5, 6, 7], 5)
    rows = response.complete.output_logprobs
    rows.token_ids.extend([1, 2, 5, 6, 7])
    rows.token_logprobs.extend([-1.0, -2.0, -5.0, -6.0, -7.0])
    found = items(SGLANG, leg, [*before, response])
    last = end(found)
    assert (tokens(found), last.reason, last.matched_stop) == ([1, 2, 5], FinishReason.STOP, 5)
    assert (last.completion_tokens, last.logprobs[-2:]) == (3, (TokenLogprob(2, -2.0), TokenLogprob(5, -5.0)))


def test_choice_ended_here_asks_for_the_calls_cancel() -> None:
    decoder = SGLANG.decoder(sampled(AGGREGATE, ignore_eos=True, stop_token_ids=(5,)))
    decoder.decode(sglang_chunk([5], 1))
    assert (decoder.is_done, decoder.ended_early) == (True, True)


@pytest.mark.parametrize("value", [0, 17])
def test_matched_stop_token_survives(value: int) -> None:
    response = sglang_complete([1], 1, "stop")
    response.complete.matched_token_id = value
    assert end(items(SGLANG, AGGREGATE, [response])).matched_stop == value


def test_logprobs_are_those_of_the_new_tokens() -> None:
    response = sglang_complete([1, 2], 2)
    rows = response.complete.output_logprobs
    rows.token_ids.extend([1, 2])
    rows.token_logprobs.extend([-0.5, -0.25])
    rows.top_logprobs.add(token_ids=[1, 8], values=[-0.5, -2.0])
    rows.top_logprobs.add(token_ids=[2, 9], values=[-0.25, -3.0])
    leg = replace(AGGREGATE, output_logprobs=True, top_logprobs=2)
    found = items(SGLANG, leg, [sglang_chunk([1], 1), response])
    assert end(found).logprobs == (TokenLogprob(2, -0.25, ((2, -0.25), (9, -3.0))),)


NO_GRAMMAR = "the engine could not continue the request under its constraint: the scheduler aborted the request: {"
"""smg-grpc-servicer 0.14.1; every retry would fail alike, after a prefill each."""
STATUSES = [
    (SGLANG, AGGREGATE, Code.INVALID_ARGUMENT, "too long", Reason.INVALID_REQUEST),
    (SGLANG, AGGREGATE, Code.RESOURCE_EXHAUSTED, "queue full", Reason.WORKER_REFUSED),
    (SGLANG, AGGREGATE, Code.UNAVAILABLE, "shutting down", Reason.WORKER_REFUSED),
    (SGLANG, AGGREGATE, Code.INTERNAL, "KV transfer of room 7 failed", Reason.ENGINE_ERROR),
    (SGLANG, RENDEZVOUS_DECODE, Code.INTERNAL, "KVTransferError(bootstrap_room=7)", Reason.KV_TRANSFER_FAILED),
    (SGLANG, RENDEZVOUS_DECODE, Code.ABORTED, "Decode transfer failed for room 7", Reason.KV_TRANSFER_FAILED),
    (SGLANG, RENDEZVOUS_DECODE, Code.INTERNAL, "out of memory", Reason.ENGINE_ERROR),
    (VLLM, AGGREGATE, Code.INTERNAL, "engine dead", Reason.ENGINE_ERROR),
    (VLLM, AGGREGATE, Code.ABORTED, "aborted", Reason.ENGINE_ABORTED),
    (VLLM, AGGREGATE, Code.FAILED_PRECONDITION, "paused", Reason.WORKER_REFUSED),
    (SGLANG, AGGREGATE, Code.FAILED_PRECONDITION, NO_GRAMMAR, Reason.INVALID_REQUEST),
    (SGLANG, RENDEZVOUS_DECODE, Code.FAILED_PRECONDITION, NO_GRAMMAR, Reason.INVALID_REQUEST),
    (VLLM, AGGREGATE, Code.FAILED_PRECONDITION, NO_GRAMMAR, Reason.INVALID_REQUEST),
]


@pytest.mark.parametrize(("dialect", "leg", "code", "details", "reason"), STATUSES)
def test_status_of_an_engine_has_its_reason(
    dialect: Dialect, leg: LegRequest, code: Code, details: str, reason: Reason
) -> None:
    found = dialect.status_failure(leg, code, details)
    assert (found.reason, found.code) == (reason, code)


PROMPT_ROWS = (TokenLogprob(5, None), TokenLogprob(6, -0.5, ((6, -0.5), (7, -2.0))))
WANTS_PROMPT = replace(AGGREGATE, prompt_logprobs=True, top_logprobs=2)


def with_prompt_rows(response: sglang.GenerateResponse) -> sglang.GenerateResponse:
    message = response.chunk if response.HasField("chunk") else response.complete
    message.input_logprobs.CopyFrom(
        sglang.InputLogProbs(
            token_ids=[5, 6],
            token_logprobs=[sglang.InputTokenLogProb(), sglang.InputTokenLogProb(value=-0.5)],
            top_logprobs=[sglang.TopLogProbs(), sglang.TopLogProbs(token_ids=[6, 7], values=[-0.5, -2.0])],
        )
    )
    return response


PROMPT_STREAMS = {
    "in the first chunk, and again in the end": [
        with_prompt_rows(sglang_chunk([1], 1)),
        with_prompt_rows(sglang_complete([1], 1)),
    ],
    "in a message of their own": [with_prompt_rows(sglang_chunk([], 0)), sglang_chunk([1], 1), sglang_complete([1], 1)],
    "in the one answer": [with_prompt_rows(sglang_complete([1], 1))],
}


@pytest.mark.parametrize("name", PROMPT_STREAMS)
def test_prompt_logprobs_come_once_wherever_the_engine_puts_them(name: str) -> None:
    found = items(SGLANG, WANTS_PROMPT, PROMPT_STREAMS[name])
    assert [item.prompt_logprobs for item in found if item.prompt_logprobs] == [PROMPT_ROWS]
    assert tokens(found) == [1]


def test_prompt_logprobs_that_nobody_asked_for_are_dropped() -> None:
    found = items(SGLANG, AGGREGATE, [with_prompt_rows(sglang_complete([1], 1))])
    assert end(found).prompt_logprobs == ()

"""An answer to protobuf: chunks on the hot path, and the `finished` message once per request."""

from __future__ import annotations

from tandem.v1 import generate_pb2, generate_result_pb2, kv_pb2, usage_pb2, worker_rank_pb2
from tandem_router.model.stream import (
    Attempt,
    ChoiceEnd,
    Finished,
    OutputChunk,
    PhaseTimings,
    ServedBy,
    TokenLogprob,
)
from tandem_router.wire.connector import connector_pb
from tandem_router.wire.scalars import failure_pb

__all__ = ["attempt_pb", "chunk_pb", "finished_pb", "served_by_pb"]


def chunk_pb(chunk: OutputChunk, next_text_offset: int, request_id: str) -> generate_result_pb2.GenerateResponse:
    """The message of new output.

    next_text_offset: bytes of the choice's text up to and with this chunk. request_id: for the stream's first message,
    else "".
    """
    return generate_result_pb2.GenerateResponse(
        chunk=generate_result_pb2.Chunk(
            index=chunk.choice,
            token_ids=chunk.token_ids,
            text=(chunk.text,) if chunk.text else (),
            next_offset=chunk.next_offset,
            next_text_offset=next_text_offset,
            logprobs=[_logprob_pb(one) for one in chunk.logprobs] if chunk.logprobs else (),
            prompt_logprobs=[_logprob_pb(one) for one in chunk.prompt_logprobs] if chunk.prompt_logprobs else (),
        ),
        request_id=request_id,
    )


def finished_pb(finished: Finished, *, request_id: str, requested_model: str) -> generate_result_pb2.Finished:
    """The last message of a good stream."""
    return generate_result_pb2.Finished(
        request_id=request_id,
        choices=[_choice_pb(choice) for choice in finished.choices],
        usage=usage_pb2.Usage(
            prompt_tokens=finished.usage.prompt_tokens,
            completion_tokens=finished.usage.completion_tokens,
            cached_prompt_tokens=finished.usage.cached_tokens,
        ),
        timings=_timings_pb(finished.timings),
        served_by=served_by_pb(finished.served_by),
        attempts=[attempt_pb(attempt) for attempt in finished.attempts],
        requested_model=requested_model,
        served_model=finished.model,
        migration_used=generate_pb2.MIGRATION_MODE_OFF,
    )


def served_by_pb(served_by: ServedBy) -> generate_result_pb2.ServedBy:
    """Who answered."""
    message = generate_result_pb2.ServedBy(
        handshake=kv_pb2.HandshakeKind.Value(f"HANDSHAKE_KIND_{served_by.kind.value}"),
        decode=worker_rank_pb2.WorkerRank(worker_id=served_by.decode_worker_id, dp_rank=served_by.decode_dp_rank),
        connector=connector_pb(served_by.kind, served_by.connector),
    )
    if served_by.prefill_worker_id is not None:
        message.pair_id = served_by.pair_id
        message.prefill.worker_id = served_by.prefill_worker_id
        if served_by.prefill_dp_rank is not None:
            message.prefill.dp_rank = served_by.prefill_dp_rank
    if served_by.room is not None:
        message.bootstrap_room.number = served_by.room
    return message


def _logprob_pb(logprob: TokenLogprob) -> generate_result_pb2.TokenLogprob:
    return generate_result_pb2.TokenLogprob(
        token_id=logprob.token_id,
        logprob=logprob.logprob,
        top=[generate_result_pb2.TopLogprob(token_id=token_id, logprob=value) for token_id, value in logprob.top],
    )


def _choice_pb(choice: ChoiceEnd) -> generate_result_pb2.ChoiceFinish:
    message = generate_result_pb2.ChoiceFinish(
        index=choice.choice,
        reason=generate_result_pb2.FinishReason.Value(f"FINISH_REASON_{choice.reason.value}"),
        completion_tokens=choice.completion_tokens,
    )
    if isinstance(choice.matched_stop, int):
        message.stop_token_id = choice.matched_stop
    elif choice.matched_stop is not None:
        message.stop_text = choice.matched_stop
    return message


def _timings_pb(timings: PhaseTimings) -> usage_pb2.PhaseTimings:
    # Rounded at the boundaries, not part by part, so that the parts still sum to the total to the nanosecond.
    message = usage_pb2.PhaseTimings()
    parts = (
        (message.queue, timings.queue_s),
        (message.prefill, timings.prefill_s),
        (message.kv_transfer, timings.transfer_s),
        (message.first_token, timings.first_token_s),
        (message.decode, timings.decode_s),
    )
    passed_s, boundary_ns = 0.0, 0
    for part, seconds in parts:
        passed_s += seconds
        next_ns = round(passed_s * 1e9)
        part.FromNanoseconds(next_ns - boundary_ns)
        boundary_ns = next_ns
    message.total.FromNanoseconds(boundary_ns)
    return message


def attempt_pb(attempt: Attempt) -> generate_result_pb2.Attempt:
    """One try."""
    return generate_result_pb2.Attempt(
        number=attempt.number,
        served_by=served_by_pb(attempt.served_by),
        failure=None if attempt.failure is None else failure_pb(attempt.failure),
    )

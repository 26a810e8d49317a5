"""What must hold of every simulated run; each check returns sentences about what does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tandem_router.core.relay_events import (
    AttemptPlanned,
    LegClosed,
    LegSent,
    RequestAccepted,
    RequestFailed,
    RequestFinished,
)
from tandem_router.errors import TABLE, Reason
from tandem_router.testing.scripted_model import answer, pages_of
from tandem_router.testing.sim_client import ClientRecord

__all__ = ["check_client", "check_events", "check_no_failure", "check_promises"]

CANCEL_PROMISE_S = 0.05
"""DESIGN 4.1: answered within 50 ms of a cancel or deadline."""
FAILURE_PROMISE_S = 1.0
"""DESIGN 4.1: answered within 1 s of a leg's failure."""
LONGEST_CALL_S = 60.0
"""No mishap and no stall of a scenario lasts long enough to excuse more."""
_EPSILON_S = 1e-6


def check_client(record: ClientRecord) -> list[str]:
    """One call ended once, with the right tokens or a reason of the table, and in time."""
    problems = list(record.problems)
    if record.started_s is None or record.ended_s is None:
        return [*problems, "it has no end"]
    if (record.finished is None) == (record.error is None):
        problems.append(f"finished {record.finished} and error {record.error}: not exactly one end")
    if record.error is not None:
        if record.error.reason not in TABLE or record.error.reason is Reason.INTERNAL_ERROR:
            problems.append(f"the error is {record.error}")
        if record.error.reason is Reason.ENGINE_PROTOCOL_ERROR:
            problems.append(f"engines keep their protocol here, yet: {record.error}")
    problems += _check_tokens(record)
    problems += _check_times(record, record.started_s, record.ended_s)
    return problems


def _check_tokens(record: ClientRecord) -> list[str]:
    request = record.plan.request
    prompt = request.token_ids or ()
    pages = pages_of(prompt, request.adapters)
    problems = []
    for choice in range(request.sampling.n):
        expected = answer(prompt, pages, request.sampling, choice, request.adapters)
        got = tuple(record.tokens.get(choice, ()))
        if got != expected.token_ids[: len(got)]:
            problems.append(f"choice {choice}: wrong tokens {got}, expected {expected.token_ids}")
        if record.finished is None:
            continue
        if got != expected.token_ids:
            problems.append(f"choice {choice}: finished after {len(got)} of {len(expected.token_ids)} tokens")
        end = record.finished.choices[choice]
        if (end.reason, end.completion_tokens) != (expected.reason, len(expected.token_ids)):
            problems.append(f"choice {choice} ended as {end}, expected {expected}")
    if record.finished is not None:
        if record.finished.usage.prompt_tokens != len(prompt):
            problems.append(f"usage is {record.finished.usage} for a prompt of {len(prompt)}")
        times = record.finished.timings
        phases = (times.queue_s, times.prefill_s, times.transfer_s, times.first_token_s, times.decode_s)
        if min(phases) < 0 or abs(sum(phases) - times.total_s) > _EPSILON_S:
            problems.append(f"phase times do not add up: {times}")
    return problems


def _check_times(record: ClientRecord, started_s: float, ended_s: float) -> list[str]:
    problems = []
    limits = record.plan.request.timeouts
    due = {"cancel": record.stopped_s, "deadline": record.deadline_s}
    if limits.total_s is not None:
        due["timeouts.total"] = started_s + limits.total_s
    if limits.first_token_s is not None and record.first_chunk_s is None:
        due["timeouts.first_token"] = started_s + limits.first_token_s
    for what, at_s in due.items():
        if at_s is not None and ended_s > at_s + CANCEL_PROMISE_S + _EPSILON_S:
            problems.append(f"answered {ended_s - at_s:.3f} s after its {what}")
    if ended_s - started_s > LONGEST_CALL_S:
        problems.append(f"took {ended_s - started_s:.1f} s")
    return problems


def check_promises(victims: Sequence[tuple[str, float]], records: Mapping[str, ClientRecord]) -> list[str]:
    """Calls that could not be retried are answered within the promise.

    victims: (request_id, when its decode worker died) of calls whose client had tokens already.
    """
    problems = []
    for request_id, died_s in victims:
        record = records[request_id]
        ended_s = record.ended_s
        if record.finished is not None:
            continue  # its last token was out before the process died; a client may read it as slowly as it likes
        if ended_s is None or ended_s > died_s + FAILURE_PROMISE_S:
            late = "never" if ended_s is None else f"{ended_s - died_s:.3f} s after"
            stall = f"; it stalled at chunk {record.plan.stall_at_chunk} for {record.plan.stall_s} s"
            problems.append(f"{request_id}: its decode worker died at {died_s:.3f}, answered {late}{stall}")
    return problems


def check_no_failure(records: Mapping[str, ClientRecord]) -> list[str]:
    """Where nothing went wrong and a client set no limit, it has its answer."""
    problems = []
    for request_id, record in records.items():
        limits = record.plan.request.timeouts
        is_limited = (limits.first_token_s, limits.inter_token_s, limits.total_s) != (None, None, None)
        if is_limited or record.plan.stop is not None or record.plan.deadline_after_s is not None:
            continue
        if record.error is not None:
            problems.append(f"{request_id} failed although nothing went wrong: {record.error}")
    return problems


def check_events(events: Sequence[tuple[float, object]]) -> list[str]:
    """Every accepted call has one end, every leg that was sent one close, and no room was minted twice."""
    problems: list[str] = []
    live: dict[str, None] = {}
    legs: dict[str, None] = {}
    rooms: dict[int, str] = {}
    for _, event in events:
        match event:
            case RequestAccepted(request_id):
                live[request_id] = None
            case RequestFinished(request_id) | RequestFailed(request_id):
                if live.pop(request_id, "absent") == "absent":
                    problems.append(f"{request_id} ended twice: {event}")
            case AttemptPlanned(request_id, room=int(room)):
                if room in rooms:
                    problems.append(f"room {room} of {request_id} was that of {rooms[room]}")
                rooms[room] = request_id
            case LegSent(leg_id=leg_id):
                if leg_id in legs:
                    problems.append(f"leg {leg_id} was sent twice")
                legs[leg_id] = None
            case LegClosed(leg_id=leg_id):
                legs.pop(leg_id, None)
    problems += [f"{request_id} never ended" for request_id in live]
    problems += [f"leg {leg_id} was never closed" for leg_id in legs]
    return problems

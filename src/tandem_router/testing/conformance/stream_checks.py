"""What a stream looks like on the wire, and how it ends: habits, cancel, Abort, deadline."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

from tandem_router.errors import Reason
from tandem_router.model.failure import EngineFailure
from tandem_router.ports import EngineCall
from tandem_router.testing.conformance.asking import Answer, gather
from tandem_router.testing.conformance.subject import Subject
from tandem_router.testing.conformance.suite import Check
from tandem_router.testing.conformance.verdict import CheckFailed, CheckSkipped, Finding, expect, note
from tandem_router.testing.conformance.wire_view import Exchange, exchange

__all__ = ["STREAM_CHECKS"]

_IDS = ("output_ids", "output_token_ids", "token_ids")
_DEADLINE_S = 0.4
_NEIGHBOUR_TOKENS = 96
_SILENCE_S = 2.0
"""After which a stream that said tokens all the time is said to be silent."""


def _ids(message: Any) -> list[int]:
    names = message.DESCRIPTOR.fields_by_name
    return next((list(getattr(message, name)) for name in _IDS if name in names), [])


async def _seen(subject: Subject) -> Exchange:
    seen = await exchange(subject, subject.leg(max_tokens=5, ignore_eos=True), subject.limits.call_s)
    expect(seen.code in ("OK", ""), f"the stream ended with {seen.code}: {seen.details}")
    expect(seen.chunks and seen.completes, f"{len(seen.chunks)} chunks and {len(seen.completes)} ends came")
    return seen


async def chunk_counts(subject: Subject) -> Finding:
    seen = await _seen(subject)
    lengths = [len(_ids(chunk)) for chunk in seen.chunks]
    counted = [chunk.completion_tokens for chunk in seen.chunks]
    running = [sum(lengths[: at + 1]) for at in range(len(lengths))]
    if len(lengths) == 1:
        return note("one chunk has it all, so it cannot be told")
    for name, expected in (("running", running), ("per chunk", lengths)):
        if counted == expected:
            return Finding(f"{name}: {counted}", {"counts": name})
    raise CheckFailed(f"chunks of {lengths} tokens count {counted}")


async def end_ids(subject: Subject) -> Finding:
    seen = await _seen(subject)
    ids, last = _ids(seen.completes[-1]), _ids(seen.chunks[-1])
    everything = [token for chunk in seen.chunks for token in _ids(chunk)]
    if not ids:
        return Finding("the end carries no ids", {"end_ids": "none"})
    if ids == last and ids != everything:
        return Finding("the end repeats the last chunk's ids", {"end_ids": "last chunk"})
    if ids == everything:
        return Finding("the end repeats all ids", {"end_ids": "all"})
    raise CheckFailed(f"the end carries {ids}, the chunks carried {everything}")


async def one_end(subject: Subject) -> Finding:
    seen = await exchange(subject, subject.leg(max_tokens=5, ignore_eos=True), subject.limits.stop_s)
    expect(len(seen.completes) == 1, f"one choice has {len(seen.completes)} ends")
    expect(seen.code != "", f"every message came, and no status within {subject.limits.stop_s:g} s")
    expect(seen.code == "OK", f"the stream ended with {seen.code}: {seen.details}")
    return Finding(f"status OK {(seen.status_after_s or 0.0) * 1000:.0f} ms after it")


async def _begun(subject: Subject, leg_id: str | None = None) -> tuple[EngineCall, str]:
    """A request that runs, and its id."""
    leg = subject.long_leg(leg_id=leg_id)
    call = subject.start(leg)
    for _ in range(2):
        expect(await call.receive() is not None, "a long request ended at once")
    return call, leg.leg_id


async def _idle_after(subject: Subject) -> str:
    try:
        return f"no load left after {await subject.until_idle():.2f} s"
    except CheckSkipped:
        await subject.ask()
        return "no loads to see it by; the next request is answered"


async def cancel_stops_the_work(subject: Subject) -> Finding:
    call, _ = await _begun(subject)
    call.cancel()
    return Finding(await _idle_after(subject))


async def abort_ends_the_stream(subject: Subject) -> Finding:
    call, leg_id = await _begun(subject)
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    await subject.client.abort(leg_id, timeout_s=subject.limits.call_s)
    needs_cancel = subject.client.dialect.traits.needs_cancel_after_abort
    patience_s = min(_SILENCE_S, subject.limits.stop_s) if needs_cancel else subject.limits.stop_s
    try:
        async with asyncio.timeout(patience_s):
            how = await _ended(call)
    except TimeoutError:
        expect(needs_cancel, f"the stream is still open {patience_s:g} s after Abort")
        how = ""
    if how:
        return Finding(f"{how} after {loop.time() - began_s:.2f} s; {await _idle_after(subject)}")
    idle = await _idle_after(subject)
    return note(f"the stream stays open, as its protocol declares: cancel the call too; {idle}")


async def _ended(call: EngineCall) -> str:
    try:
        await gather(call)
    except EngineFailure as failure:
        expect(
            failure.reason is not Reason.ENGINE_PROTOCOL_ERROR, f"it ended as no protocol allows: {failure.sentence}"
        )
        return f"{failure.code.name} ({failure.reason})"
    raise CheckFailed("the request ran to its end in spite of Abort")


async def unknown_abort_is_harmless(subject: Subject) -> Finding:
    alone = await subject.ask(max_tokens=_NEIGHBOUR_TOKENS, ignore_eos=True)
    answer, call = Answer(), subject.start(subject.leg(max_tokens=_NEIGHBOUR_TOKENS, ignore_eos=True))
    first = await call.receive()
    expect(first is not None, "a request for many tokens ended at once")
    if first is not None:
        answer.take(first)
    said = "OK"
    try:
        await subject.client.abort(f"unknown-{uuid.uuid4()}", timeout_s=subject.limits.call_s)
    except EngineFailure as failure:
        said = failure.code.name
    await gather(call, answer)
    expect(answer.ids == alone.ids, "a neighbour's answer changed")
    return Finding(f"answered {said}; a neighbour's answer is whole")


async def abort_by_prefix(subject: Subject) -> Finding:
    stem = f"conformance-{uuid.uuid4()}"
    shorter, _ = await _begun(subject, stem)
    longer, _ = await _begun(subject, f"{stem}-longer")
    await subject.client.abort(stem, timeout_s=subject.limits.call_s)
    shorter.cancel()
    try:
        # Tokens that were under way still come; a living request makes more than that.
        async with asyncio.timeout(min(_SILENCE_S, subject.limits.stop_s)):
            for _ in range(50):
                if await longer.receive() is None:
                    break
    except TimeoutError:
        return note("Abort of an id also stops ids that begin with it; no id may be a prefix of another")
    except EngineFailure as failure:
        return note(f"Abort of an id also stops ids that begin with it ({failure.reason})")
    return Finding("Abort of an id spares an id that begins with it")


async def deadline_is_honoured(subject: Subject) -> Finding:
    leg = subject.long_leg()
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    call = subject.start(leg, timeout_s=_DEADLINE_S)
    try:
        answer = await gather(call)
    except EngineFailure as failure:
        expect(failure.reason is Reason.TOTAL_TIMEOUT, f"it ended as {failure.reason}: {failure.sentence}")
        return Finding(f"ended after {loop.time() - began_s:.2f} s of {_DEADLINE_S:g} s; {await _idle_after(subject)}")
    return note(f"{len(answer.ids)} tokens took less than {_DEADLINE_S:g} s, so it cannot be told")


STREAM_CHECKS: tuple[Check[Subject], ...] = (
    Check("stream/chunk-counts", chunk_counts, is_alone=True),
    Check("stream/end-ids", end_ids, is_alone=True),
    Check("stream/one-end", one_end, is_alone=True),
    Check("ending/cancel-stops-the-work", cancel_stops_the_work, is_alone=True),
    Check("ending/abort-ends-the-stream", abort_ends_the_stream, is_alone=True),
    Check("ending/abort-of-unknown-id", unknown_abort_is_harmless, is_alone=True),
    Check("ending/abort-by-prefix", abort_by_prefix, is_alone=True),
    Check("ending/deadline", deadline_is_honoured, is_alone=True),
)

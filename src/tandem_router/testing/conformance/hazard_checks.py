"""What is known to kill or hang some engine, sent past the guards, one by one and last: what does this one do?

A router refuses all of it at its door, so no verdict here is a failure; they say what the guards are there for.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from tandem_router.model.failure import EngineFailure
from tandem_router.model.operations import StartProfile, StopProfile
from tandem_router.testing.conformance.asking import Answer, gather
from tandem_router.testing.conformance.subject import Subject
from tandem_router.testing.conformance.suite import Check
from tandem_router.testing.conformance.verdict import CheckSkipped, Finding, note
from tandem_router.testing.conformance.wire_view import prompt_field, send

__all__ = ["HAZARD_CHECKS"]


def _request(subject: Subject, prompt: list[int]) -> Any:
    """A greedy request for four tokens, with a prompt that no dialect would write."""
    leg = subject.leg(max_tokens=4)
    request = subject.client.dialect.generate_request(leg, subject.facts)
    field = prompt_field(request, leg.token_ids)
    del field[:]
    field.extend(prompt)
    return request


def _hazard(prompt: Callable[[Subject], list[int]]) -> Callable[[Subject], Awaitable[Finding]]:
    async def check(subject: Subject) -> Finding:
        await _must_live(subject)
        return await _sent(subject, _request(subject, prompt(subject)))

    return check


async def _must_live(subject: Subject) -> None:
    why = await subject.is_alive()
    if why is not None:
        raise CheckSkipped(f"the engine is dead: {why}")


async def _sent(subject: Subject, request: Any) -> Finding:
    seen = await send(subject, request, subject.limits.hang_s)
    why = await subject.is_alive()
    if why is None:
        # Health alone may be a living process before a dead engine.
        try:
            # It may be busy with what was sent: being slow is not being dead.
            async with asyncio.timeout(subject.limits.call_s):
                await subject.ask(max_tokens=2)
        except (EngineFailure, TimeoutError) as failure:
            why = f"the next request: {str(failure) or 'no answer'}"
    did = f"refused with {seen.code}" if seen.code not in ("OK", "") else "served"
    if seen.code == "" and not seen.completes:
        did = f"no answer within {subject.limits.hang_s:g} s"
    if why is not None:
        return note(f"DIED: {did}; then {why}", did="died")
    if seen.code == "" and not seen.completes:
        return note(f"hung or slow: {did}; the next request is answered", did="hung")
    return note(did, did=did)


def _too_long(subject: Subject) -> list[int]:
    context = subject.facts.context_length
    if context is None or context > 200_000:
        raise CheckSkipped("the context is not known, or a prompt of its length is too large to send")
    return list(subject.prompts.fresh(context + 8))


def _outside(subject: Subject) -> list[int]:
    if subject.facts.vocab_size is None:
        raise CheckSkipped("the vocabulary's size is not known")
    return [*subject.prompts.usual, subject.facts.vocab_size + 3]


async def same_id_twice(subject: Subject) -> Finding:
    await _must_live(subject)
    leg_id = f"conformance-{uuid.uuid4()}"
    alone = await subject.ask(max_tokens=24, ignore_eos=True)
    answers = [Answer(), Answer()]
    calls = [subject.start(subject.leg(leg_id=leg_id, max_tokens=24, ignore_eos=True)) for _ in answers]
    readers = [asyncio.create_task(gather(call, answer)) for call, answer in zip(calls, answers, strict=True)]
    done, pending = await asyncio.wait(readers, timeout=subject.limits.hang_s)
    for reader in pending:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    subject.let_go()
    whole = sum(reader.exception() is None for reader in done)
    equal = sum(answer.ids == alone.ids for answer in answers)
    why = await subject.is_alive()
    if why is not None:
        return note(f"DIED: {why}", did="died")
    return note(f"{whole} of 2 ended well, {len(pending)} hung, {equal} have the right tokens")


async def leg_without_its_pair(subject: Subject) -> Finding:
    """Half of a rendezvous dies of a request without a room; nothing else has such a thing."""
    await _must_live(subject)
    if subject.serves_alone:
        raise CheckSkipped("it takes whole requests")
    request = subject.client.dialect.generate_request(
        subject.leg(max_tokens=4), replace(subject.facts, disaggregation_mode=None)
    )
    seen = await send(subject, request, subject.limits.hang_s)
    why = await subject.is_alive()
    did = f"answered {seen.code or 'nothing'}"
    return note(f"DIED: {did}; then {why}", did="died") if why else note(did)


async def profiler_starts_and_stops(subject: Subject) -> Finding:
    await _must_live(subject)
    try:
        await subject.client.operate(StartProfile(), timeout_s=subject.limits.call_s)
    except EngineFailure as failure:
        if failure.reason.startswith("RUNTIME_CANNOT_"):
            raise
        return note(f"it was not started for it: {failure.sentence}")
    try:
        await subject.ask()
    finally:
        done = await subject.client.operate(StopProfile(), timeout_s=subject.limits.call_s)
    return Finding(done.message or "done")


HAZARD_CHECKS: tuple[Check[Subject], ...] = (
    Check("hazard/profiler", profiler_starts_and_stops, is_hazardous=True, is_alone=True),
    Check("hazard/prompt-over-the-limit", _hazard(_too_long), is_hazardous=True, is_alone=True),
    Check("hazard/same-id-twice", same_id_twice, is_hazardous=True, is_alone=True),
    Check("hazard/token-outside-vocabulary", _hazard(_outside), is_hazardous=True, is_alone=True),
    Check("hazard/empty-prompt", _hazard(lambda _: []), is_hazardous=True, is_alone=True),
    Check("hazard/leg-without-its-pair", leg_without_its_pair, is_hazardous=True),
)

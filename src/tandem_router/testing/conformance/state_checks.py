"""What an engine tells and does besides answering: loads, KV events, its cache, vectors, adapters."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator

from tandem_router.errors import Reason
from tandem_router.model.adapters import AdapterUse
from tandem_router.model.embedding import EmbedLeg
from tandem_router.model.failure import EngineFailure
from tandem_router.model.kv_events import KvBatch, KvStored
from tandem_router.model.operations import FlushCache, ListAdapters
from tandem_router.ports import KvEventCall
from tandem_router.testing.conformance.subject import Subject
from tandem_router.testing.conformance.suite import Check
from tandem_router.testing.conformance.verdict import CheckFailed, CheckSkipped, Finding, counted, expect, note

__all__ = ["STATE_CHECKS"]

_ANY_BLOCKS = 300
"""Tokens of a prompt that fills two blocks of any engine: vLLM's on a CPU have 128."""
_FAR_AHEAD = 2**40
_REFUSALS = frozenset({"UNIMPLEMENTED", "INVALID_ARGUMENT", "FAILED_PRECONDITION"})
"""Statuses that say of a request that this engine does not take it; others say that something went wrong."""
_LOOK_S = 0.02


async def loads_rise_and_fall(subject: Subject) -> Finding:
    await subject.until_idle()
    call = subject.start(subject.long_leg())
    expect(await call.receive() is not None, "a long request ended at once")
    seen, loop = 0, asyncio.get_running_loop()
    until_s = loop.time() + subject.limits.stop_s
    while not seen and loop.time() < until_s:
        loads = await subject.loads()
        seen = sum(load.running for load in loads)
        await asyncio.sleep(_LOOK_S)
    ranks = subject.facts.dp_size
    expect(len(loads) == ranks, f"loads of {counted(len(loads), 'rank')} are told, dp_size is {ranks}")
    expect(seen, f"no rank says that it runs anything while a request runs, for {subject.limits.stop_s:g} s")
    call.cancel()
    return Finding(f"{seen} running, then none after {await subject.until_idle():.2f} s; {counted(ranks, 'rank')}")


async def each_rank_answers(subject: Subject) -> Finding:
    size = subject.facts.dp_size
    if size <= 1:
        raise CheckSkipped("it has one rank")
    answers = [await subject.ask(dp_rank=rank) for rank in range(size)]
    empty = [rank for rank, answer in enumerate(answers) if not answer.ids]
    expect(not empty, f"no tokens of rank {', '.join(map(str, empty))}")
    others = [rank for rank, answer in enumerate(answers) if answer.ids != answers[0].ids]
    if others and not subject.facts.batch_invariant:
        return note(f"the greedy answer of rank {', '.join(map(str, others))} differs from that of rank 0")
    expect(not others, f"the greedy answer of rank {', '.join(map(str, others))} differs from that of rank 0")
    return Finding(f"{size} ranks, one answer")


def _blocks_prompt(subject: Subject) -> tuple[int, ...]:
    size = subject.facts.kv_block_size
    wanted = _ANY_BLOCKS if size is None else 2 * size + 2
    return subject.prompts.fresh(min(wanted, (subject.facts.context_length or 512) // 2))


@contextlib.asynccontextmanager
async def _subscribed(subject: Subject, resume_at: int) -> AsyncIterator[KvEventCall]:
    call = subject.client.kv_events(resume_at=resume_at)
    try:
        yield call
    finally:
        call.cancel()


async def _stored(subject: Subject) -> tuple[KvBatch, int]:
    """The first batch with stored blocks after fresh prompts, and how many batches came before it."""
    batches: asyncio.Queue[KvBatch | None] = asyncio.Queue()

    async def read(call: KvEventCall) -> None:
        while (batch := await call.receive()) is not None:
            batches.put_nowait(batch)
        batches.put_nowait(None)

    async with _subscribed(subject, 0) as call:
        reading = asyncio.create_task(read(call))
        try:
            await asyncio.wait((reading,), timeout=0.3)  # a refusal comes at once
            if reading.done():
                reading.result()
                raise CheckFailed("the stream ended with OK at once")
            count = 0
            for _ in range(2):
                await subject.ask(_blocks_prompt(subject), max_tokens=2)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(subject.limits.stop_s):
                        while (batch := await _next(batches, reading)) is not None:
                            if any(isinstance(event, KvStored) for event in batch.events):
                                return batch, count
                            count += 1
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
    raise CheckFailed(f"no stored block was told within {subject.limits.stop_s:g} s after a prompt of two blocks")


async def _next(batches: asyncio.Queue[KvBatch | None], reading: asyncio.Task[None]) -> KvBatch | None:
    waiting = asyncio.create_task(batches.get())
    try:
        await asyncio.wait((waiting, reading), return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            return waiting.result()
        reading.result()
        return None
    finally:
        waiting.cancel()


async def kv_stored_after_a_prompt(subject: Subject) -> Finding:
    batch, _ = await _stored(subject)
    blocks = [block for event in batch.events if isinstance(event, KvStored) for block in event.blocks]
    sizes = {block.block_size for block in blocks}
    stated = subject.facts.kv_block_size
    sentence = f"batch {batch.sequence}: {counted(len(blocks), 'block')} of {', '.join(map(str, sorted(sizes)))} tokens"
    if stated is not None and sizes - {0, stated}:
        return note(f"{sentence}; the facts say {stated}")
    return Finding(sentence)


async def kv_resumes(subject: Subject) -> Finding:
    batch, _ = await _stored(subject)
    if not batch.sequence:
        raise CheckSkipped("batches have no numbers")
    async with _subscribed(subject, batch.sequence) as call:
        try:
            async with asyncio.timeout(subject.limits.stop_s):
                again = await call.receive()
        except EngineFailure as failure:
            expect(failure.reason is Reason.KV_EVENTS_LOST, f"{failure.reason}: {failure.sentence}")
            return note(f"it keeps no history: {failure.code.name}; an index begins empty after each break")
        except TimeoutError:
            raise CheckFailed(f"batch {batch.sequence} is neither sent again nor refused") from None
    expect(again is not None and again.sequence == batch.sequence, f"asked for {batch.sequence}, got {again}")
    return Finding(f"batch {batch.sequence} comes again")


async def kv_too_far_is_refused(subject: Subject) -> Finding:
    await _stored(subject)
    async with _subscribed(subject, _FAR_AHEAD) as call:
        try:
            async with asyncio.timeout(min(2.0, subject.limits.stop_s)):
                batch = await call.receive()
        except EngineFailure as failure:
            expect(failure.reason is Reason.KV_EVENTS_LOST, f"{failure.reason}: {failure.sentence}")
            return Finding(f"{failure.code.name}")
        except TimeoutError:
            return note("a number that was never reached is waited for in silence")
    got = "the end of the stream" if batch is None else f"batch {batch.sequence}"
    return note(f"a number that was never reached is answered with {got}")


async def prefixes_are_reused(subject: Subject) -> Finding:
    prompt = _blocks_prompt(subject)
    first = await subject.ask(prompt, max_tokens=4, ignore_eos=True)
    second = await subject.ask(prompt, max_tokens=4, ignore_eos=True)
    expect(first.ids == second.ids, "a reused prefix changes the answer")
    expect(not first.cached_tokens, f"{first.cached_tokens} tokens of a fresh prompt are said to be cached")
    if not second.cached_tokens:
        return note("it tells no cached tokens, or reuses none")
    return Finding(f"{second.cached_tokens} of {len(prompt)} tokens cached the second time")


async def cache_is_flushed(subject: Subject) -> Finding:
    prompt = _blocks_prompt(subject)
    await subject.ask(prompt, max_tokens=2)
    with contextlib.suppress(CheckSkipped):
        await subject.until_idle()
    done = await subject.client.operate(FlushCache(wait_idle_s=2.0), timeout_s=subject.limits.call_s)
    after = await subject.ask(prompt, max_tokens=2)
    expect(not after.cached_tokens, f"{after.cached_tokens} tokens are still cached after it")
    return Finding(done.message or "done")


async def embeds_or_refuses(subject: Subject) -> Finding:
    leg = EmbedLeg(f"conformance-{uuid.uuid4()}", subject.prompts.usual)
    try:
        vector = await subject.client.embed(leg, timeout_s=subject.limits.call_s)
    except EngineFailure as failure:
        expect(not subject.facts.can_embed, f"its facts say that it embeds: {failure.sentence}")
        if failure.code.name in ("OK", "DEADLINE_EXCEEDED"):
            raise
        if failure.code.name in _REFUSALS:
            raise CheckSkipped(f"refused: {failure.code.name}") from None
        return note(f"answered {failure.code.name}, which does not say that it cannot: {failure.sentence}")
    again = await subject.client.embed(leg, timeout_s=subject.limits.call_s)
    expect(vector.values, "an empty vector")
    expect(vector.values == again.values, "the same text has another vector the second time")
    if not subject.facts.can_embed:
        return note(f"{len(vector.values)} numbers, though its facts do not say that it embeds")
    return Finding(f"{len(vector.values)} numbers, {vector.prompt_tokens} tokens")


async def adapters_are_listed(subject: Subject) -> Finding:
    done = await subject.client.operate(ListAdapters(), timeout_s=subject.limits.call_s)
    return Finding(f"loaded: {', '.join(one.name for one in done.adapters) or 'none'}")


async def a_loaded_adapter_is_applied(subject: Subject) -> Finding:
    done = await subject.client.operate(ListAdapters(), timeout_s=subject.limits.call_s)
    if not done.adapters:
        raise CheckSkipped("none is loaded")
    use = (AdapterUse(done.adapters[0].name),)
    plain = await subject.ask(ignore_eos=True)
    first, second = [await subject.ask(ignore_eos=True, adapters=use) for _ in range(2)]
    expect(first.ids == second.ids, f"with {use[0].name} the second answer differs")
    changed = "changes" if first.ids != plain.ids else "does not change"
    return Finding(f"{use[0].name} {changed} the greedy answer")


async def nothing_is_left(subject: Subject) -> Finding:
    why = await subject.is_alive()
    expect(why is None, f"not healthy: {why}")
    try:
        return Finding(f"healthy, nothing runs or waits ({await subject.until_idle():.2f} s)")
    except CheckSkipped:
        return Finding("healthy; it tells no loads")


STATE_CHECKS: tuple[Check[Subject], ...] = (
    Check("ranks/each-answers", each_rank_answers, is_alone=True),
    Check("loads/rise-and-fall", loads_rise_and_fall, is_alone=True),
    Check("kv-events/stored-after-a-prompt", kv_stored_after_a_prompt, is_alone=True),
    Check("kv-events/resume", kv_resumes, is_alone=True),
    Check("kv-events/too-far-ahead", kv_too_far_is_refused, is_alone=True),
    Check("cache/prefix-reuse", prefixes_are_reused, is_alone=True),
    Check("cache/flush", cache_is_flushed, is_alone=True),
    Check("embed/vector-or-refusal", embeds_or_refuses),
    Check("adapters/list", adapters_are_listed),
    Check("adapters/applied", a_loaded_adapter_is_applied, is_alone=True),
    Check("end/nothing-is-left", nothing_is_left, is_final=True),
)

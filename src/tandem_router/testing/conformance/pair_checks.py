"""What holds of two engines together: that they fit, that the KV cache moves, and that half of a pair can end."""

from __future__ import annotations

import asyncio
import contextlib
import random
from dataclasses import replace
from typing import Any

from tandem_router.handshake.contract import prefill_sampling
from tandem_router.model.failure import EngineFailure
from tandem_router.model.operations import FlushCache
from tandem_router.model.pairing import AbortInTransfer
from tandem_router.policies.compatibility import incompatibility
from tandem_router.testing.conformance.answer_checks import differs_at
from tandem_router.testing.conformance.asking import Answer, gather
from tandem_router.testing.conformance.pair_subject import PairSubject, worker_of
from tandem_router.testing.conformance.subject import Subject
from tandem_router.testing.conformance.suite import Check
from tandem_router.testing.conformance.verdict import CheckFailed, CheckSkipped, Finding, expect, note
from tandem_router.testing.conformance.wire_view import send

__all__ = ["PAIR_ONLY_CHECKS"]

_ANY_BLOCKS = 300
_TRIES = 3
_VICTIMS = 6
_LOOK_S = 0.05


def _blocks_prompt(pair: PairSubject) -> tuple[int, ...]:
    """A fresh one of more than two blocks."""
    size = pair.prefill.facts.kv_block_size
    return pair.prompts.fresh(_ANY_BLOCKS if size is None else 2 * size + 3)


async def they_fit(pair: PairSubject) -> Finding:
    why = incompatibility(worker_of(pair.prefill), worker_of(pair.decode))
    expect(why is None, "" if why is None else f"{why.reason}: {why.sentence}")
    facts, handshake = pair.prefill.facts, pair.handshake
    sentence = f"{handshake.kind} over {facts.kv_connector or 'a connector that is not said'}"
    return Finding(f"{sentence}; aborting a decode in transfer is {handshake.abort_in_transfer}")


async def they_answer(pair: PairSubject) -> Finding:
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    answer = await pair.ask(_blocks_prompt(pair))
    expect(answer.ids, "an answer without tokens")
    return Finding(f"{len(answer.ids)} tokens through both in {loop.time() - began_s:.2f} s")


async def equals_alone(pair: PairSubject) -> Finding:
    alone = pair.alone or (pair.prefill if pair.prefill.serves_alone else None)
    if alone is None:
        raise CheckSkipped("neither half takes a whole request: name an engine of the model with --alone")
    prompts = (pair.prompts.usual, _blocks_prompt(pair), _blocks_prompt(pair))
    for prompt in prompts:
        paired = await pair.ask(prompt, ignore_eos=True)
        whole = await alone.ask(prompt, ignore_eos=True)
        at = differs_at(paired, whole)
        expect(at is None, f"a prompt of {len(prompt)} tokens: they differ from token {at} on")
    return Finding(f"{len(prompts)} prompts, up to {len(prompts[-1])} tokens; compared with {alone.url}")


async def kv_moves(pair: PairSubject) -> Finding:
    """Another prompt's blocks must change the answer, or be refused: then it is the blocks that are read."""
    if not pair.handshake.returns_params:
        raise CheckSkipped("nothing is relayed, so another prompt's blocks cannot be named")
    cached = 0
    for _ in range(_TRIES):
        ours, theirs = _blocks_prompt(pair), _blocks_prompt(pair)
        right = await pair.ask(ours, ignore_eos=True)
        cached = max(cached, right.cached_tokens)
        await _forget(pair.decode)
        try:
            wrong = await _mixed(pair, ours, theirs)
        except EngineFailure as failure:
            return Finding(f"another prompt's handle is refused: {failure.reason}; cached tokens {cached}")
        finally:
            await _forget(pair.decode)
        at = differs_at(right, wrong)
        if at is not None:
            return Finding(f"another prompt's blocks change the answer from token {at} on; cached tokens {cached}")
    raise CheckFailed(f"{_TRIES} answers are the same with another prompt's blocks: decode does not read them")


async def _mixed(pair: PairSubject, ours: tuple[int, ...], theirs: tuple[int, ...]) -> Answer:
    """The answer to our prompt from the blocks of theirs."""
    common, other = pair.decode.leg(ours, ignore_eos=True), pair.decode.leg(theirs, ignore_eos=True)
    link = pair.link()
    prefilled = await gather(pair.start_prefill(other, link))
    return await gather(pair.start_decode(common, pair.returned(link, prefilled)))


async def _forget(subject: Subject) -> None:
    """Drop its prefix cache: blocks that are there already would not be fetched."""
    with contextlib.suppress(CheckSkipped):
        await subject.until_idle()
    await subject.client.operate(FlushCache(wait_idle_s=2.0), timeout_s=subject.limits.call_s)


async def two_choices_are_two_pairs(pair: PairSubject) -> Finding:
    one = await pair.ask(ignore_eos=True)
    both = await asyncio.gather(pair.ask(ignore_eos=True), pair.ask(ignore_eos=True))
    expect(all(answer.ids == one.ids for answer in both), "two pairs of one prompt at once differ from one alone")
    return Finding("each has its own legs and the same tokens")


async def _used(subject: Subject) -> int | None:
    try:
        return sum(load.used_tokens for load in await subject.loads())
    except CheckSkipped:
        return None


async def _back_to(subject: Subject, before: int | None, within_s: float) -> tuple[bool, float]:
    """Whether no more tokens are held than before, and after how long; (True, 0) where it does not say."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    while True:
        used = await _used(subject)
        if used is None or before is None or used <= before:
            return True, loop.time() - began_s
        if loop.time() - began_s > within_s:
            return False, within_s
        await asyncio.sleep(_LOOK_S)


async def cancelled_decodes_spare_neighbours(pair: PairSubject) -> Finding:
    is_safe = pair.handshake.abort_in_transfer is AbortInTransfer.SAFE
    prompt, chance = _blocks_prompt(pair), random.Random(7)
    alone = await pair.ask(prompt, max_tokens=48, ignore_eos=True)
    before = [await _used(half) for half in (pair.prefill, pair.decode)]
    neighbour = asyncio.create_task(pair.ask(prompt, max_tokens=48, ignore_eos=True))
    try:
        for _ in range(_VICTIMS):
            await _victim(pair, chance.uniform(0.0, 2 * alone.first_s + 0.02), in_transfer=is_safe)
        answer = await neighbour
    finally:
        neighbour.cancel()
        await asyncio.gather(neighbour, return_exceptions=True)
    at = differs_at(alone, answer)
    expect(at is None, f"a neighbour's answer changed from token {at} on while {_VICTIMS} others were cancelled")
    when = "at random moments, transfer included" if is_safe else "after their first token, as DEFER asks"
    is_back, took_s = await _back_to(pair.decode, before[1], pair.limits.stop_s)
    expect(is_back, f"decode still holds blocks of cancelled requests after {took_s:g} s")
    is_back, lease_s = await _back_to(pair.prefill, before[0], pair.limits.give_back_s)
    expect(is_back, f"prefill still holds blocks of cancelled requests after {lease_s:g} s")
    if lease_s > pair.limits.stop_s:
        return note(
            f"{_VICTIMS} cancelled {when}; prefill keeps what was not fetched {lease_s:.0f} s, until its lease ends"
        )
    return Finding(f"{_VICTIMS} cancelled {when}; blocks are back after {max(took_s, lease_s):.2f} s")


async def _victim(pair: PairSubject, after_s: float, *, in_transfer: bool) -> None:
    """A request whose decode is cancelled. in_transfer: so long after it was written, else after its first item."""
    common = replace(pair.decode.long_leg(_blocks_prompt(pair)))
    link = pair.link()
    prefilling = pair.start_prefill(common, link)
    if pair.handshake.needs_room:
        decoding = pair.start_decode(common, link)
    else:
        decoding = pair.start_decode(common, pair.returned(link, await gather(prefilling)))
    if in_transfer:
        await asyncio.sleep(after_s)
    else:
        await decoding.receive()
    decoding.cancel()
    prefilling.cancel()


async def unused_handle_is_let_go(pair: PairSubject) -> Finding:
    """How long blocks are held that nobody fetches, watched for a while, and whether a fetch gives them back."""
    if not pair.handshake.returns_params:
        raise CheckSkipped("there is no handle: a leg alone ends with its call")
    await _forget(pair.decode)
    before = await _used(pair.prefill)
    if before is None:
        raise CheckSkipped("prefill tells no loads to see held blocks by")
    common, link = pair.decode.leg(_blocks_prompt(pair)), pair.link()
    link = pair.returned(link, await gather(pair.start_prefill(common, link)))
    held = (await _used(pair.prefill) or 0) - before
    is_back, took_s = await _back_to(pair.prefill, before, pair.limits.lease_s)
    if held > 0 and is_back:
        return Finding(f"{held} tokens were held, and let go after {took_s:.1f} s")
    taken = replace(common, sampling=prefill_sampling(common.sampling), is_streaming=False)
    await gather(pair.start_decode(taken, link))
    is_back, after_s = await _back_to(pair.prefill, before, pair.limits.stop_s)
    expect(is_back, f"{held} tokens are still held {after_s:g} s after a decode has fetched them")
    if held <= 0:
        return note("its loads do not show blocks that wait for a decode")
    return Finding(f"{held} tokens held for at least {took_s:g} s; let go {after_s:.2f} s after a decode fetched them")


async def nothing_is_left(pair: PairSubject) -> Finding:
    for half in (pair.prefill, pair.decode):
        why = await half.is_alive()
        expect(why is None, f"{half.url}: {why}")
        with contextlib.suppress(CheckSkipped):
            await half.until_idle()
    return Finding("both are healthy, nothing runs or waits")


async def decode_without_its_prefill(pair: PairSubject) -> Finding:
    """A room to which nobody comes, or parameters that name no blocks: past the guards."""
    common, link = pair.decode.leg(_blocks_prompt(pair), max_tokens=4), pair.link()
    if pair.handshake.returns_params:
        link = replace(link, returned='{"do_remote_prefill": true, "do_remote_decode": false}')
    leg = replace(pair.handshake.decode_leg(common, link), kind=pair.handshake.kind)
    request = _unguarded(pair.decode, leg, link.returned)
    seen = await send(pair.decode, request, pair.limits.hang_s)
    why = await pair.decode.is_alive()
    ended = f" with {seen.completes[-1].finish_reason}" if seen.completes else ""
    did = f"answered {seen.code}{ended}" if seen.code else f"waits, at least {pair.limits.hang_s:g} s"
    return note(f"DIED: {did}; then {why}", did="died") if why else note(did)


def _unguarded(subject: Subject, leg: Any, params: str | None) -> Any:
    if params is None:
        return subject.client.dialect.generate_request(leg, subject.facts)
    request: Any = subject.client.dialect.generate_request(subject.leg(leg.token_ids, max_tokens=4), subject.facts)
    request.kv_transfer_params_json = params
    return request


PAIR_ONLY_CHECKS: tuple[Check[PairSubject], ...] = (
    Check("pair/compatible", they_fit),
    Check("pair/answers", they_answer),
    Check("pair/equals-alone", equals_alone),
    Check("pair/kv-moves", kv_moves),
    Check("pair/two-choices", two_choices_are_two_pairs),
    Check("pair/cancelled-decode", cancelled_decodes_spare_neighbours),
    Check("pair/unused-handle", unused_handle_is_let_go),
    Check("end/nothing-is-left", nothing_is_left, is_final=True),
    Check("hazard/decode-without-prefill", decode_without_its_prefill, is_hazardous=True),
)

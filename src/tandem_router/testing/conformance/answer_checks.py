"""What an answer is: the same twice, streamed or whole, as long as asked, and counted right. On an engine or a pair."""

from __future__ import annotations

import asyncio

from tandem_router.model.stream import FinishReason
from tandem_router.testing.conformance.asking import Answer, Asker
from tandem_router.testing.conformance.suite import Check
from tandem_router.testing.conformance.verdict import CheckSkipped, Finding, expect, note

__all__ = ["ANSWER_CHECKS", "differs_at"]

_LENGTHS = (1, 7, 33)
_OTHER_LENGTHS = (9, 14, 20, 31)
_AT_ONCE = 16
_PROMPT_METADATA = (("x-request-id", "conformance"), ("x-custom-header", "a value of 64 characters " + "." * 39))
_TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def differs_at(first: Answer, second: Answer) -> int | None:
    """Index of the first token in which two answers differ, None where they are equal."""
    ours, theirs = first.ids, second.ids
    if ours == theirs:
        return None
    return next(
        (at for at, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]),
        min(len(ours), len(theirs)),
    )


async def greedy_repeats(asker: Asker) -> Finding:
    first, second = await asker.ask(), await asker.ask()
    expect(first.ids, "an answer without tokens")
    expect(first.ids == second.ids, f"the second answer differs from token {differs_at(first, second)} on")
    return Finding(f"{len(first.ids)} tokens, first after {first.first_s * 1000:.0f} ms")


async def streamed_equals_whole(asker: Asker) -> Finding:
    streamed, whole = await asker.ask(), await asker.ask(is_streaming=False)
    expect(streamed.ids == whole.ids, f"they differ from token {differs_at(streamed, whole)} on")
    expect(whole.chunks == 0, f"a request that is not streamed got {whole.chunks} chunks")
    return Finding(f"{streamed.chunks} chunks and one message, {len(whole.ids)} tokens")


async def counts_are_right(asker: Asker) -> Finding:
    answer = await asker.ask()
    prompt, end = len(asker.prompts.usual), answer.end
    expect(end.prompt_tokens == prompt, f"the prompt has {prompt} tokens; it counts {end.prompt_tokens}")
    expect(end.completion_tokens == len(answer.ids), f"{len(answer.ids)} came; it counts {end.completion_tokens}")
    return Finding(f"{prompt} and {len(answer.ids)} tokens")


async def two_choices(asker: Asker) -> Finding:
    if asker.facts.max_choices == 1:
        raise CheckSkipped("one choice per request; the router asks once for each")
    # Some engines refuse several greedy choices: they would be the same.
    temperature = 0.8 if asker.facts.max_greedy_choices == 1 else 0.0
    answer = await asker.ask(n=2, temperature=temperature, ignore_eos=True)
    expect(sorted(answer.ends) == [0, 1], f"the choices that ended are {sorted(answer.ends)}")
    lengths = [len(answer.tokens[choice]) for choice in (0, 1)]
    expect(lengths == [16, 16], f"they have {lengths} tokens, 16 were asked")
    return Finding("each has its tokens and one end")


async def max_tokens_is_exact(asker: Asker) -> Finding:
    for asked in _LENGTHS:
        answer = await asker.ask(max_tokens=asked, ignore_eos=True)
        expect(len(answer.ids) == asked, f"asked for {asked}, got {len(answer.ids)}")
        expect(answer.end.reason is FinishReason.LENGTH, f"{asked} tokens ended as {answer.end.reason}, not LENGTH")
    return Finding(f"{', '.join(map(str, _LENGTHS))} tokens")


async def end_token_ends(asker: Asker) -> Finding:
    answer = await asker.ask(max_tokens=128)
    if answer.end.reason is FinishReason.LENGTH:
        return note("the model did not end by itself within 128 tokens")
    ends_with_it = answer.ids[-1] in asker.facts.eos_token_ids
    longer = await asker.ask(max_tokens=128, ignore_eos=True)
    expect(len(longer.ids) == 128, f"with ignore_eos it ends after {len(longer.ids)} of 128 tokens")
    return Finding(
        f"after {len(answer.ids)} tokens, {'with' if ends_with_it else 'without'} the token; ignore_eos goes on"
    )


async def _stopping(asker: Asker, *, ignore_eos: bool) -> tuple[tuple[int, ...], int, int]:
    """A prompt, where in its greedy answer a token comes first that is not among the first two, and the token."""
    for prompt in (asker.prompts.usual, *(asker.prompts.fresh(length) for length in _OTHER_LENGTHS)):
        ids = (await asker.ask(prompt, ignore_eos=ignore_eos, max_tokens=24)).ids
        found = [(ids.index(token), token) for token in dict.fromkeys(ids) if token not in asker.facts.eos_token_ids]
        late = [one for one in found if one[0] >= 2]
        if late:
            return prompt, *late[len(late) // 2]
    raise CheckSkipped("greedy answers repeat themselves, or end, too soon to choose a token in them")


async def _stopped(asker: Asker, *, ignore_eos: bool) -> Finding:
    prompt, position, token = await _stopping(asker, ignore_eos=ignore_eos)
    answer = await asker.ask(prompt, stop_token_ids=(token,), max_tokens=24, ignore_eos=ignore_eos)
    lengths = (position, position + 1)
    expect(len(answer.ids) in lengths, f"it should end with token {position + 1}, and has {len(answer.ids)}")
    expect(answer.end.reason is FinishReason.STOP, f"it ended as {answer.end.reason}, not STOP")
    keeps = "keeps" if len(answer.ids) == position + 1 else "drops"
    return Finding(f"ends with token {position + 1} and {keeps} it; matched: {answer.end.matched_stop}")


async def stop_token_stops(asker: Asker) -> Finding:
    return await _stopped(asker, ignore_eos=False)


async def stop_token_stops_under_ignore_eos(asker: Asker) -> Finding:
    return await _stopped(asker, ignore_eos=True)


async def min_tokens_holds(asker: Asker) -> Finding:
    prompt, position, token = await _stopping(asker, ignore_eos=False)
    least = position + 4
    answer = await asker.ask(prompt, stop_token_ids=(token,), min_tokens=least, max_tokens=least + 8)
    expect(len(answer.ids) >= least, f"it ended after {len(answer.ids)} of at least {least} tokens")
    return Finding(f"a stop at {position + 1} waits for {least}")


async def metadata_is_accepted(asker: Asker) -> Finding:
    plain = await asker.ask()
    decorated = await asker.ask(metadata=_PROMPT_METADATA, traceparent=_TRACEPARENT)
    expect(plain.ids == decorated.ids, "metadata changed the answer")
    return Finding("traceparent and two more keys")


async def many_at_once_are_equal(asker: Asker) -> Finding:
    alone = await asker.ask()
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    together = await asyncio.gather(*(asker.ask() for _ in range(_AT_ONCE)))
    took_s = loop.time() - began_s
    others = [answer for answer in together if answer.ids != alone.ids]
    short = [answer for answer in together if 0 not in answer.ends or not answer.ids]
    expect(not short, f"{len(short)} of {_AT_ONCE} have no answer")
    if others and not asker.facts.batch_invariant:
        return note(f"{len(others)} of {_AT_ONCE} differ from the one alone; it does not declare batch invariance")
    at = differs_at(alone, others[0]) if others else None
    expect(at is None, f"{len(others)} of {_AT_ONCE} differ from the one alone, from token {at} on")
    return Finding(f"{_AT_ONCE} in {took_s:.2f} s")


ANSWER_CHECKS: tuple[Check[Asker], ...] = (
    Check("answer/greedy-repeats", greedy_repeats, is_alone=True),
    Check("answer/streamed-equals-whole", streamed_equals_whole, is_alone=True),
    Check("answer/counts", counts_are_right, is_alone=True),
    Check("answer/two-choices", two_choices, is_alone=True),
    Check("limits/max-tokens-exact", max_tokens_is_exact, is_alone=True),
    Check("limits/end-token", end_token_ends, is_alone=True),
    Check("limits/stop-token", stop_token_stops, is_alone=True),
    Check("limits/stop-token-under-ignore-eos", stop_token_stops_under_ignore_eos, is_alone=True),
    Check("limits/min-tokens", min_tokens_holds, is_alone=True),
    Check("calls/metadata", metadata_is_accepted, is_alone=True),
    Check("calls/sixteen-at-once", many_at_once_are_equal, is_alone=True),
)

"""How tokens are drawn and what is said of them: seeds, neutral values, log probabilities. On an engine or a pair."""

from __future__ import annotations

from typing import Any

from tandem_router.model.stream import TokenLogprob
from tandem_router.testing.conformance.asking import Asker
from tandem_router.testing.conformance.suite import Check
from tandem_router.testing.conformance.verdict import CheckSkipped, Finding, expect, note

__all__ = ["SAMPLING_CHECKS"]

_TOP = 3
_SEEDS = (7, 7, 8, 9)
_WIDE: dict[str, Any] = {"top_p": 0.99, "top_k": 50, "min_p": 0.001}
"""They leave the likeliest token in."""


async def seed_repeats(asker: Asker) -> Finding:
    prompt = asker.prompts.fresh(12)
    drawn = [await asker.ask(prompt, temperature=2.0, seed=seed, ignore_eos=True) for seed in _SEEDS]
    expect(drawn[0].ids == drawn[1].ids, "the same seed gives another answer")
    others = {answer.ids for answer in drawn[1:]}
    if len(others) == 1:
        return note("other seeds give the same answer, so the seed may have no effect")
    return Finding(f"one seed repeats, {len(_SEEDS) - 1} seeds give {len(others)} answers")


async def wide_values_change_nothing(asker: Asker) -> Finding:
    plain, stated = await asker.ask(), await asker.ask(**_WIDE)
    expect(plain.ids == stated.ids, "a greedy answer changes with top_p, top_k and min_p that leave its tokens in")
    return Finding(", ".join(f"{name} {value}" for name, value in _WIDE.items()))


async def top_k_one_is_greedy(asker: Asker) -> Finding:
    greedy, drawn = await asker.ask(), await asker.ask(temperature=1.0, top_k=1)
    expect(greedy.ids == drawn.ids, "top_k 1 at temperature 1 is not the greedy answer: top_k has no effect")
    return Finding("at temperature 1")


async def small_top_p_is_greedy(asker: Asker) -> Finding:
    greedy, drawn = await asker.ask(), await asker.ask(temperature=1.0, top_p=0.001)
    expect(greedy.ids == drawn.ids, "top_p 0.001 at temperature 1 is not the greedy answer: top_p has no effect")
    return Finding("at temperature 1")


def _well_formed(found: TokenLogprob) -> bool:
    in_range = found.logprob is None or found.logprob <= 1e-4
    return in_range and len(found.top) <= _TOP


async def output_logprobs(asker: Asker) -> Finding:
    if not asker.facts.returns_logprobs:
        raise CheckSkipped("it returns none")
    answer = await asker.ask(output_logprobs=True, top_logprobs=_TOP, max_tokens=6, ignore_eos=True)
    found = answer.logprobs
    expect(len(found) == len(answer.ids), f"{len(answer.ids)} tokens have {len(found)} log probabilities")
    expect(tuple(one.token_id for one in found) == answer.ids, "they are of other tokens")
    expect(all(_well_formed(one) for one in found), f"one is above 0, or has more than {_TOP} alternatives")
    expect(all(one.logprob is not None for one in found), "a generated token has none")
    greedy = await asker.ask(max_tokens=6, ignore_eos=True)
    expect(greedy.ids == answer.ids, "asking for them changes the answer")
    tops = [len(one.top) for one in found]
    return Finding(f"one per token, {min(tops)} to {max(tops)} alternatives of {_TOP}")


async def prompt_logprobs(asker: Asker) -> Finding:
    if not asker.facts.returns_prompt_logprobs:
        raise CheckSkipped("it returns none")
    prompt = asker.prompts.fresh(20)
    answer = await asker.ask(prompt, prompt_logprobs=True, top_logprobs=_TOP, max_tokens=2, ignore_eos=True)
    found = answer.prompt_logprobs
    expect(len(found) == len(prompt), f"a prompt of {len(prompt)} tokens has {len(found)} log probabilities")
    expect(tuple(one.token_id for one in found) == prompt, "they are of other tokens")
    expect(found[0].logprob is None, "the first token has one, though nothing precedes it")
    expect(all(one.logprob is not None and _well_formed(one) for one in found[1:]), "one is missing or above 0")
    return Finding("one per token of the prompt but the first")


SAMPLING_CHECKS: tuple[Check[Asker], ...] = (
    Check("sampling/seed", seed_repeats, is_alone=True),
    Check("sampling/wide-values", wide_values_change_nothing, is_alone=True),
    Check("sampling/top-k-one", top_k_one_is_greedy, is_alone=True),
    Check("sampling/small-top-p", small_top_p_is_greedy, is_alone=True),
    Check("logprobs/output", output_logprobs, is_alone=True),
    Check("logprobs/prompt", prompt_logprobs, is_alone=True),
)

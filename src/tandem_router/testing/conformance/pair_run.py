"""The suite for a prefill and a decode engine: what holds of them together, and every answer check through both."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable

from tandem_router.testing.conformance.answer_checks import ANSWER_CHECKS
from tandem_router.testing.conformance.asking import Limits, still_answers
from tandem_router.testing.conformance.described import facts_of
from tandem_router.testing.conformance.pair_checks import PAIR_ONLY_CHECKS
from tandem_router.testing.conformance.pair_subject import PairSubject
from tandem_router.testing.conformance.sampling_checks import SAMPLING_CHECKS
from tandem_router.testing.conformance.subject import Target, connected
from tandem_router.testing.conformance.suite import Check, Choice, Report, judge
from tandem_router.testing.conformance.verdict import Outcome, Verdict

__all__ = ["PAIR_CHECKS", "check_pair"]

_FIRST = PAIR_ONLY_CHECKS[0].name
_ONE_BY_ONE = "answer/two-choices"
"""A pair serves one choice; `pair/two-choices` is what the router does instead."""

PAIR_CHECKS: tuple[Check[PairSubject], ...] = (
    *PAIR_ONLY_CHECKS[:2],
    *(one for one in (*ANSWER_CHECKS, *SAMPLING_CHECKS) if one.name != _ONE_BY_ONE),
    *PAIR_ONLY_CHECKS[2:],
)
"""In order: whether they fit comes first, what can hurt last."""


async def check_pair(
    prefill: Target,
    decode: Target,
    *,
    alone: Target | None = None,
    choice: Choice | None = None,
    limits: Limits | None = None,
    seed: int | None = None,
    on_facts: Callable[[list[tuple[str, str]]], None] = lambda facts: None,
    on_verdict: Callable[[Verdict], None] = lambda verdict: None,
) -> Report:
    """As `check_engine`, for two engines; the rest is skipped where they do not fit.

    alone: an engine of the same model that takes whole requests, to compare answers with.
    """
    limits = limits or Limits()
    drawn = random.SystemRandom().randrange(2**31) if seed is None else seed
    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(connected(prefill, limits, drawn))
        second = await stack.enter_async_context(connected(decode, limits, drawn + 1))
        third = None if alone is None else await stack.enter_async_context(connected(alone, limits, drawn))
        pair = PairSubject(first, second, third)
        report = Report([*_side_by_side(facts_of(first), facts_of(second)), ("seed", str(drawn))])
        on_facts(report.facts)

        def keep(verdict: Verdict) -> None:
            report.verdicts.append(verdict)
            on_verdict(verdict)

        def why_not(check: Check[PairSubject]) -> str | None:
            do_not_fit = any(one.check == _FIRST and one.outcome is Outcome.FAIL for one in report.verdicts)
            return "the two do not fit together" if do_not_fit else None

        await judge(
            PAIR_CHECKS,
            pair,
            choice=choice or Choice(),
            can_run=why_not,
            answers=lambda: still_answers(pair),
            let_go=pair.let_go,
            on_verdict=keep,
        )
        return report


def _side_by_side(prefill: list[tuple[str, str]], decode: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """What both say once, and what they say differently beside one another."""
    rows = []
    for (name, ours), (_, theirs) in zip(prefill, decode, strict=True):
        rows += [(name, ours)] if ours == theirs else [(f"prefill {name}", ours), (f"decode {name}", theirs)]
    return rows

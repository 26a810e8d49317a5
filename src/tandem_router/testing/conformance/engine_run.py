"""The suite for one engine: the table of all checks, in the order in which they are run."""

from __future__ import annotations

import random
from collections.abc import Callable

from tandem_router.testing.conformance.answer_checks import ANSWER_CHECKS
from tandem_router.testing.conformance.asking import Limits, still_answers
from tandem_router.testing.conformance.described import facts_of
from tandem_router.testing.conformance.hazard_checks import HAZARD_CHECKS
from tandem_router.testing.conformance.identity_checks import IDENTITY_CHECKS
from tandem_router.testing.conformance.sampling_checks import SAMPLING_CHECKS
from tandem_router.testing.conformance.state_checks import STATE_CHECKS
from tandem_router.testing.conformance.stream_checks import STREAM_CHECKS
from tandem_router.testing.conformance.subject import Subject, Target, connected
from tandem_router.testing.conformance.suite import Check, Choice, Report, judge
from tandem_router.testing.conformance.verdict import Verdict

__all__ = ["ENGINE_CHECKS", "check_engine"]

ENGINE_CHECKS: tuple[Check[Subject], ...] = (
    *IDENTITY_CHECKS,
    *ANSWER_CHECKS,
    *SAMPLING_CHECKS,
    *STREAM_CHECKS,
    *STATE_CHECKS,
    *HAZARD_CHECKS,
)
"""In order: what can hurt comes last. Names are unique."""


_HALF = "half of a pair: no answer was asked for; name the other half with --decode"


async def check_engine(
    target: Target,
    *,
    choice: Choice | None = None,
    limits: Limits | None = None,
    seed: int | None = None,
    on_facts: Callable[[list[tuple[str, str]]], None] = lambda facts: None,
    on_verdict: Callable[[Verdict], None] = lambda verdict: None,
) -> Report:
    """Connect, run the chosen checks, and let go of everything.

    seed: of the prompts; None = a random one. on_facts: told once, before the first check. on_verdict: of each check.
    Raises EngineFailure and TandemError where there is nothing to check: see `connected`.
    """
    drawn = random.SystemRandom().randrange(2**31) if seed is None else seed
    async with connected(target, limits or Limits(), drawn) as subject:
        report = Report([*facts_of(subject), ("seed", str(drawn))], remark=_HALF if not subject.serves_alone else "")
        on_facts(report.facts)

        def keep(verdict: Verdict) -> None:
            report.verdicts.append(verdict)
            on_verdict(verdict)

        await judge(
            ENGINE_CHECKS,
            subject,
            choice=choice or Choice(),
            can_run=lambda check: _why_not(check, subject),
            answers=lambda: still_answers(subject),
            let_go=subject.let_go,
            on_verdict=keep,
        )
        return report


def _why_not(check: Check[Subject], subject: Subject) -> str | None:
    if check.is_alone and not subject.serves_alone:
        return f"half of a pair ({subject.facts.disaggregation_mode}): name the other half with --decode"
    if check.is_alone and not subject.facts.can_generate:
        return "its model only embeds"
    return None

"""Running checks one after the other: each bounded in time, each ending with a verdict, nothing left running."""

from __future__ import annotations

import asyncio
import fnmatch
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from tandem_router.errors import Reason, TandemError
from tandem_router.model.failure import EngineFailure
from tandem_router.testing.conformance.verdict import CheckFailed, CheckSkipped, Finding, Outcome, Verdict

__all__ = ["Check", "Choice", "Report", "judge"]

S = TypeVar("S", contravariant=True)
"""What a check is about; one of an `Asker` is one of any engine or pair."""

_CANNOT = "RUNTIME_CANNOT_"
"""Reasons that begin so are a precise refusal of something that a protocol or an engine does not have."""


@dataclass(frozen=True, slots=True)
class Check(Generic[S]):
    """One fact about an engine."""

    name: str
    """group/fact."""
    run: Callable[[S], Awaitable[Finding]]
    """Raises CheckFailed, CheckSkipped; EngineFailure and TandemError are failures, RUNTIME_CANNOT_* excepted."""
    timeout_s: float = 150.0
    is_hazardous: bool = False
    """It sends what is known to kill or hang some engine."""
    is_alone: bool = False
    """It generates without a second leg."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which checks to run."""

    only: tuple[str, ...] = ()
    """Globs of names; empty = all."""
    skip: tuple[str, ...] = ()
    hazardous: bool = False

    def takes(self, check: Check[S]) -> bool:
        """Whether it is to be run or shown at all."""
        wanted = not self.only or any(fnmatch.fnmatchcase(check.name, glob) for glob in self.only)
        return wanted and not any(fnmatch.fnmatchcase(check.name, glob) for glob in self.skip)


@dataclass(slots=True)
class Report:
    """All verdicts, in order."""

    facts: list[tuple[str, str]]
    """What is known before the first check, for people: name and value."""
    verdicts: list[Verdict] = field(default_factory=list)

    def count(self, outcome: Outcome) -> int:
        """How many verdicts are so."""
        return sum(verdict.outcome is outcome for verdict in self.verdicts)

    @property
    def conforms(self) -> bool:
        """Whether something was checked and nothing failed."""
        return bool(self.verdicts) and not self.count(Outcome.FAIL)


async def judge(
    checks: Iterable[Check[S]],
    subject: S,
    *,
    choice: Choice,
    can_run: Callable[[Check[S]], str | None],
    let_go: Callable[[], None],
    on_verdict: Callable[[Verdict], None],
) -> Sequence[Verdict]:
    """Run the chosen checks in order.

    can_run: why a check cannot be run here, or None. let_go: called after each check, to cancel what it started.
    """
    verdicts = []
    loop = asyncio.get_running_loop()
    for check in checks:
        if not choice.takes(check):
            continue
        began_s = loop.time()
        why_not = can_run(check)
        if why_not is None and check.is_hazardous and not choice.hazardous:
            why_not = "hazardous: not sent without --hazardous"
        finding = Finding(why_not, outcome=Outcome.SKIP) if why_not else await _found(check, subject)
        let_go()
        verdict = Verdict(check.name, finding.outcome, finding.sentence, loop.time() - began_s, finding.measured)
        verdicts.append(verdict)
        on_verdict(verdict)
    return verdicts


async def _found(check: Check[S], subject: S) -> Finding:
    try:
        async with asyncio.timeout(check.timeout_s):
            return await check.run(subject)
    except CheckSkipped as skipped:
        return Finding(str(skipped), outcome=Outcome.SKIP)
    except CheckFailed as failed:
        return Finding(str(failed), outcome=Outcome.FAIL)
    except (EngineFailure, TandemError) as error:
        outcome = Outcome.SKIP if _is_refusal(error.reason) else Outcome.FAIL
        return Finding(f"{error.reason}: {error.sentence}", outcome=outcome)
    except TimeoutError:
        return Finding(f"not over within {check.timeout_s:g} s", outcome=Outcome.FAIL)


def _is_refusal(reason: Reason) -> bool:
    return reason.startswith(_CANNOT)

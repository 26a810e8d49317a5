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

_LATE_IN_A_ROW = 2
"""So many checks one after the other that time ran out for, and the engine is asked whether it answers anything."""
_SILENT = "not asked: the engine no longer answers a plain request in time"
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
    is_final: bool = False
    """It looks at what is left, also of an engine that has gone silent."""


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
    remark: str = ""
    """What the verdicts do not cover, where that is much."""

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
    answers: Callable[[], Awaitable[bool]],
    let_go: Callable[[], None],
    on_verdict: Callable[[Verdict], None],
) -> Sequence[Verdict]:
    """Run the chosen checks in order; of an engine that has gone silent only the final ones.

    can_run: why a check cannot be run here, or None. answers: whether a plain request is still answered in time, else
    dozens of checks would each wait for their limit. let_go: called after each check, to cancel what it started.
    """
    verdicts = []
    late, is_silent = 0, False
    loop = asyncio.get_running_loop()
    for check in checks:
        if not choice.takes(check):
            continue
        began_s = loop.time()
        why_not = can_run(check)
        if why_not is None and check.is_hazardous and not choice.hazardous:
            why_not = "hazardous: not sent without --hazardous"
        if why_not is None and is_silent and not check.is_final:
            why_not = _SILENT
        if why_not is None:
            finding, is_late = await _found(check, subject)
            late = late + 1 if is_late else 0
        else:
            finding = Finding(why_not, outcome=Outcome.SKIP)
        let_go()
        verdict = Verdict(check.name, finding.outcome, finding.sentence, loop.time() - began_s, finding.measured)
        verdicts.append(verdict)
        on_verdict(verdict)
        if late == _LATE_IN_A_ROW:
            late, is_silent = 0, not await answers()
            let_go()
    return verdicts


async def _found(check: Check[S], subject: S) -> tuple[Finding, bool]:
    """What a check found, and whether time ran out for it."""
    try:
        async with asyncio.timeout(check.timeout_s):
            return await check.run(subject), False
    except CheckSkipped as skipped:
        return Finding(str(skipped), outcome=Outcome.SKIP), False
    except CheckFailed as failed:
        return Finding(str(failed), outcome=Outcome.FAIL), False
    except (EngineFailure, TandemError) as error:
        outcome = Outcome.SKIP if _is_refusal(error.reason) else Outcome.FAIL
        return Finding(f"{error.reason}: {error.sentence}", outcome=outcome), error.reason is Reason.TOTAL_TIMEOUT
    except TimeoutError:
        return Finding(f"not over within {check.timeout_s:g} s", outcome=Outcome.FAIL), True


def _is_refusal(reason: Reason) -> bool:
    return reason.startswith(_CANNOT)

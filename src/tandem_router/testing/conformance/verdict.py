"""What a check says: a verdict in one word, one line for a person, and what was measured."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["CheckFailed", "CheckSkipped", "Finding", "Outcome", "Verdict", "counted", "expect", "note"]


class Outcome(enum.StrEnum):
    """The verdict."""

    PASS = "PASS"
    FAIL = "FAIL"
    SKIP = "SKIP"
    """The engine has no such thing, or says that it cannot, or the check was not asked for."""
    NOTE = "NOTE"
    """Neither good nor bad: a habit that a router must know."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check that did not fail found."""

    sentence: str
    measured: Mapping[str, str] = field(default_factory=dict)
    outcome: Outcome = Outcome.PASS


@dataclass(frozen=True, slots=True)
class Verdict:
    """One line of a report."""

    check: str
    """group/fact."""
    outcome: Outcome
    finding: str
    took_s: float = 0.0
    measured: Mapping[str, str] = field(default_factory=dict)


class CheckFailed(Exception):
    """The engine does not do what the check's name says; the text is the finding."""


class CheckSkipped(Exception):
    """There is nothing to check here; the text says why."""


def expect(holds: object, sentence: str) -> None:
    """Raise CheckFailed with the sentence, which says what was found instead, unless it holds."""
    if not holds:
        raise CheckFailed(sentence)


def counted(count: int, noun: str) -> str:
    """ "1 rank", "2 ranks"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def note(sentence: str, **measured: str) -> Finding:
    """A finding that is neither good nor bad."""
    return Finding(sentence, measured, Outcome.NOTE)

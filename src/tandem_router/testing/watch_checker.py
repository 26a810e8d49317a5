"""Judges what readers of a watch were told against what was committed, by a model of its own.

The model is the list of commits and nothing else: what a thing was at a revision is looked up there, and what a reader
should have been told follows from the schema's words (tandem.v1.WatchEventType). A reader's whole life is judged, with
its disconnects and resumes: per message, and by the table that the reader has built from all of them.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

__all__ = ["Commit", "ReaderHistory", "Session", "Told", "Truth", "check_reader"]


@dataclass(frozen=True, slots=True)
class Commit:
    """One change that is a fact. Revisions rise; they need not be contiguous."""

    revision: int
    key: str
    thing: object | None
    """What the thing is from this revision on; None = gone. Compared with ==."""


@dataclass(frozen=True, slots=True)
class Told:
    """One message that reached a reader."""

    type: str
    """A name of WatchEventType, without the prefix."""
    revision: int
    key: str | None = None
    thing: object | None = None


@dataclass(slots=True)
class Session:
    """One call of a reader, from its request to its end, whatever ended it."""

    from_revision: int | None = None
    told: list[Told] = field(default_factory=list)
    compacted_below: int | None = None
    """The call was refused as compacted; the lowest revision that the history kept could be resumed from."""


@dataclass(slots=True)
class ReaderHistory:
    """All calls of one reader, in order, with one filter."""

    matches: Callable[[object], bool]
    sessions: list[Session] = field(default_factory=list)


class Truth:
    """What every thing was at every revision."""

    def __init__(self, commits: Sequence[Commit]) -> None:
        self._at = {commit.revision: commit for commit in commits}
        self._revisions = sorted(self._at)
        self._lives: dict[str, list[Commit]] = {}
        for revision in self._revisions:
            commit = self._at[revision]
            self._lives.setdefault(commit.key, []).append(commit)

    def thing(self, key: str, revision: int) -> object | None:
        """The thing as of a revision; None when it was not there."""
        life = self._lives.get(key, [])
        index = bisect.bisect_right(life, revision, key=lambda commit: commit.revision)
        return life[index - 1].thing if index else None

    def table(self, revision: int, matches: Callable[[object], bool]) -> dict[str, object]:
        """Everything that was there and matched as of a revision."""
        things = {key: self.thing(key, revision) for key in self._lives}
        return {key: thing for key, thing in things.items() if thing is not None and matches(thing)}

    def owed(self, after: int, up_to: int, matches: Callable[[object], bool]) -> list[Told]:
        """The deltas that a reader who knows everything up to `after` must get before it knows up to `up_to`."""
        first = bisect.bisect_right(self._revisions, after)
        last = bisect.bisect_right(self._revisions, up_to)
        owed = (self._delta(self._at[revision], matches) for revision in self._revisions[first:last])
        return [told for told in owed if told is not None]

    def _delta(self, commit: Commit, matches: Callable[[object], bool]) -> Told | None:
        before = self.thing(commit.key, commit.revision - 1)
        was_in = before is not None and matches(before)
        is_in = commit.thing is not None and matches(commit.thing)
        if is_in:
            return Told("UPDATED" if was_in else "ADDED", commit.revision, commit.key, commit.thing)
        if was_in:
            last = before if commit.thing is None else commit.thing
            return Told("REMOVED", commit.revision, commit.key, last)
        return None


class _Reader:
    """What a reader knows as its messages come in."""

    def __init__(self, truth: Truth, matches: Callable[[object], bool]) -> None:
        self.truth = truth
        self.matches = matches
        self.table: dict[str, object] = {}
        self.known: int | None = None
        """Everything up to here; None before the first SYNCED."""
        self.problems: list[str] = []

    def run(self, number: int, session: Session) -> None:
        if session.compacted_below is not None:
            self._refused(number, session, session.compacted_below)
            return
        snapshot_at: int | None = None
        if session.from_revision is None:
            self.table, self.known = {}, None
        elif session.from_revision != self.known:
            self._wrong(number, f"resumes from {session.from_revision} and knows {self.known}")
        synced = False
        for told in session.told:
            where = f"{told.type} {told.revision}"
            if told.type == "SNAPSHOT":
                if session.from_revision is not None or synced:
                    self._wrong(number, f"{where} out of place")
                if snapshot_at not in (None, told.revision):
                    self._wrong(number, f"{where} in a snapshot of {snapshot_at}")
                snapshot_at = told.revision
                self._snapshot(number, told)
            elif told.type == "SYNCED":
                if synced:
                    self._wrong(number, f"{where} is the second")
                if snapshot_at not in (None, told.revision):
                    self._wrong(number, f"{where} after a snapshot of {snapshot_at}")
                synced = True
                if self.known is None:
                    self.known = told.revision
                    self._compare(number)
                else:
                    self._advance(number, told)
            elif session.from_revision is None and not synced:
                self._wrong(number, f"{where} before SYNCED")
            else:
                self._advance(number, told)

    def _refused(self, number: int, session: Session, oldest: int) -> None:
        if session.told:
            self._wrong(number, "was refused and told something")
        if session.from_revision is None or session.from_revision >= oldest:
            self._wrong(number, f"resumes from {session.from_revision}, was refused, and {oldest} was kept")

    def _snapshot(self, number: int, told: Told) -> None:
        assert told.key is not None
        if told.key in self.table:
            self._wrong(number, f"{told.key} twice in one snapshot")
        if told.thing != self.truth.thing(told.key, told.revision) or not self.matches(told.thing):
            self._wrong(number, f"{told.key} in the snapshot of {told.revision} is {told.thing}")
        self.table[told.key] = told.thing

    def _advance(self, number: int, told: Told) -> None:
        assert self.known is not None
        is_mark = told.key is None
        if told.revision < self.known or (told.revision == self.known and not is_mark):
            self._wrong(number, f"{told.type} {told.revision} goes back or repeats: {self.known} is known")
            return
        owed = self.truth.owed(self.known, told.revision, self.matches)
        if is_mark:
            if owed:
                self._wrong(number, f"{told.type} {told.revision} leaves out {owed}")
            self.known = told.revision
            self._compare(number)
            return
        if not owed or owed[-1] != told:
            self._wrong(number, f"{told} and it should be {owed[-1:] or 'nothing'}")
        if owed[:-1]:
            self._wrong(number, f"{told.type} {told.revision} leaves out {owed[:-1]}")
        assert told.key is not None
        if told.type == "REMOVED":
            self.table.pop(told.key, None)
        elif told.thing is not None:
            self.table[told.key] = told.thing
        self.known = told.revision

    def _compare(self, number: int) -> None:
        assert self.known is not None
        expected = self.truth.table(self.known, self.matches)
        if self.table != expected:
            self._wrong(number, f"the reader's table at {self.known} is {self.table} and not {expected}")

    def _wrong(self, number: int, sentence: str) -> None:
        self.problems.append(f"session {number}: {sentence}")


def check_reader(commits: Sequence[Commit], reader: ReaderHistory, caught_up_at: int | None = None) -> list[str]:
    """What is wrong with a reader's life, one sentence each; empty when nothing is.

    commits: all that is a fact. caught_up_at: the revision that the reader had the time to reach, None if it had not.
    """
    state = _Reader(Truth(commits), reader.matches)
    for number, session in enumerate(reader.sessions):
        state.run(number, session)
    if caught_up_at is not None:
        if state.known is None:
            state.problems.append("the reader was never told everything")
        else:
            owed = state.truth.owed(state.known, caught_up_at, reader.matches)
            if owed:
                state.problems.append(f"the reader knows {state.known} and still waits for {owed}")
            elif state.table != state.truth.table(caught_up_at, reader.matches):
                state.problems.append(f"the reader's table at the end is {state.table}")
    return state.problems

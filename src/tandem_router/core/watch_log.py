"""What is there now, and the last changes that led to it, by revision: what lists read and watches follow.

One change has one revision and concerns at most one thing, so a revision is an exact place to resume from. A change
keeps the thing as it was before and after, so whether it enters or leaves a filter can be told without replaying
history. The table and the changes move together: `current()` is always what `revision` says.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from tandem_router.errors import Reason, TandemError

__all__ = ["Change", "WatchLog", "first_revision"]

KeyT = TypeVar("KeyT", bound=Hashable)
ThingT = TypeVar("ThingT")

_REVISIONS_PER_MS = 1000
"""A life that made more than a million changes per second on average would reach into the next life's revisions."""


def first_revision(started_at_wall_s: float) -> int:
    """The revision before the first of a life whose state is not stored, from its start in seconds since the epoch.

    Lives never share a revision (unless the clock is set back between them), so a revision of another life is refused
    and not mistaken for one of ours. Below 2^53 for the next 250 years: JSON readers keep every digit.
    """
    return int(started_at_wall_s * 1000) * _REVISIONS_PER_MS


@dataclass(frozen=True, slots=True)
class Change(Generic[ThingT]):
    """One thing before and after one revision; None before it came into being and after it is gone."""

    before: ThingT | None
    after: ThingT | None


class WatchLog(Generic[KeyT, ThingT]):
    """Immutable things by key, and the changes of the last `capacity` revisions. Not thread-safe."""

    def __init__(self, *, revision: int = 0, capacity: int = 65_536) -> None:
        """Args:
        revision: of the empty table; the first change has the next one.
        capacity: revisions kept; each holds two references to things that mostly share their parts.
        """
        if capacity < 1:
            raise ValueError(f"capacity {capacity} is below 1")
        self._capacity = capacity
        self._revision = revision
        self._oldest = revision
        self._things: dict[KeyT, ThingT] = {}
        self._changes: dict[int, Change[ThingT]] = {}
        self._bells: list[Callable[[], None]] = []

    @property
    def revision(self) -> int:
        """Of the newest change."""
        return self._revision

    @property
    def oldest_revision(self) -> int:
        """The lowest revision that can be resumed from: every change after it is kept."""
        return self._oldest

    def get(self, key: KeyT) -> ThingT | None:
        """The thing as it is now, or None."""
        return self._things.get(key)

    def current(self) -> tuple[ThingT, ...]:
        """Everything that is there at `revision`, oldest first."""
        return tuple(self._things.values())

    def put(self, key: KeyT, thing: ThingT) -> None:
        """The next revision: a thing came into being or changed."""
        before = self._things.get(key)
        self._things[key] = thing
        self._note(Change(before, thing))

    def remove(self, key: KeyT) -> None:
        """The next revision: a thing is gone. Raises KeyError when it is not there."""
        self._note(Change(self._things.pop(key), None))

    def pass_over(self) -> None:
        """The next revision: something changed that is none of these things."""
        self._note(None)

    def change(self, revision: int) -> Change[ThingT] | None:
        """What happened at a revision above `oldest_revision`; None when it concerned none of these things."""
        return self._changes.get(revision)

    def check(self, revision: int) -> None:
        """Raise TandemError(REVISION_COMPACTED) unless a reader that knows everything up to `revision` can go on.

        One that is too old is refused, and one from the future too: both mean that the reader's history is not ours.
        """
        if self._oldest <= revision <= self._revision:
            return
        kept = f"the history kept, {self._oldest} to {self._revision}"
        raise TandemError(
            Reason.REVISION_COMPACTED,
            f"revision {revision} is outside {kept}; start again without it",
            field="from_revision",
            metadata={"oldest_revision": str(self._oldest), "newest_revision": str(self._revision)},
        )

    def compact(self, revision: int) -> None:
        """Drop the changes up to `revision`; those that are not there are dropped already."""
        while self._oldest < min(revision, self._revision):
            self._oldest += 1
            self._changes.pop(self._oldest, None)

    def subscribe(self, bell: Callable[[], None]) -> Callable[[], None]:
        """Call `bell` after every revision; it must return at once and change nothing here. Returns the way to end."""
        self._bells.append(bell)
        return lambda: self._bells.remove(bell)

    def _note(self, change: Change[ThingT] | None) -> None:
        self._revision += 1
        if change is not None:
            self._changes[self._revision] = change
        self.compact(self._revision - self._capacity)
        for bell in self._bells:
            bell()

    def __len__(self) -> int:
        return len(self._things)

    def __repr__(self) -> str:
        return f"<WatchLog {len(self._things)} things at {self._revision}, changes since {self._oldest}>"

"""One reader's way through a WatchLog: what it must be told next.

Order: the snapshot, one SYNCED, then deltas by rising revision; a resumed reader gets the deltas it missed and then
SYNCED. Nothing is skipped: a reader that the log has overtaken is told so and ends.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from tandem_router.core.watch_log import Change, WatchLog
from tandem_router.errors import Reason, TandemError
from tandem_router.model.watch import WatchEvent, WatchEventType

__all__ = ["SCAN_MOST", "WatchCursor"]

KeyT = TypeVar("KeyT", bound=Hashable)
ThingT = TypeVar("ThingT")

SCAN_MOST = 256
"""Things or changes looked at per call of `next`, so that a filter that lets nothing pass holds the loop for well below
1 ms."""


class WatchCursor(Generic[KeyT, ThingT]):
    """Where one reader is. `next` gives one message at a time; the log may grow in between."""

    __slots__ = ("_goal", "_log", "_matches", "_snapshot", "_starts_whole", "_taken", "is_synced", "position")

    def __init__(
        self, log: WatchLog[KeyT, ThingT], matches: Callable[[ThingT], bool], from_revision: int | None = None
    ) -> None:
        """Args:
        matches: which things are meant; pure.
        from_revision: the reader knows everything up to it; None = begin with a snapshot of now.

        Raises TandemError(REVISION_COMPACTED) when the reader can not go on from there.
        """
        if from_revision is not None:
            log.check(from_revision)
        self._log = log
        self._matches = matches
        self._starts_whole = from_revision is None
        self._snapshot = log.current() if self._starts_whole else ()
        self._taken = 0
        self._goal = log.revision
        self.position = log.revision if from_revision is None else from_revision
        """Everything up to here has been given out, except what is left of the snapshot."""
        self.is_synced = False

    @property
    def has_more(self) -> bool:
        """Whether `next` has something to look at now."""
        return not self.is_synced or self.position < self._log.revision

    @property
    def backlog(self) -> int:
        """Revisions that have happened and were not given out."""
        return self._log.revision - self.position

    def next(self) -> WatchEvent[ThingT] | None:
        """The next message, or None when there is none among the next SCAN_MOST changes (see `has_more`).

        Raises TandemError(SLOW_CLIENT) when the changes it needs have been compacted meanwhile.
        """
        if self.position < self._log.oldest_revision:
            raise self.slow()
        for _ in range(SCAN_MOST):
            if self._taken < len(self._snapshot):
                thing = self._snapshot[self._taken]
                self._taken += 1
                if self._matches(thing):
                    return WatchEvent(WatchEventType.SNAPSHOT, self._goal, thing)
            elif not self.is_synced and self.position == self._goal:
                self.is_synced = True
                self._snapshot = ()
                self._taken = 0
                return WatchEvent(WatchEventType.SYNCED, self._goal)
            elif self.position < self._log.revision:
                self.position += 1
                change = self._log.change(self.position)
                told = None if change is None else self._delta(change)
                if told is not None:
                    return told
            else:
                return None
        return None

    def slow(self) -> TandemError:
        """The error of a reader that is too far behind."""
        can_resume = self.is_synced or not self._starts_whole
        what = "resume from the last revision seen" if can_resume else "it has not had SYNCED: start again"
        return TandemError(
            Reason.SLOW_CLIENT,
            f"the reader is {self.backlog} revisions behind; {what}",
            metadata={"behind": str(self.backlog)},
        )

    def _delta(self, change: Change[ThingT]) -> WatchEvent[ThingT] | None:
        before, after = change.before, change.after
        did_match = before is not None and self._matches(before)
        does_match = after is not None and self._matches(after)
        if does_match:
            kind = WatchEventType.UPDATED if did_match else WatchEventType.ADDED
            return WatchEvent(kind, self.position, after)
        if did_match:
            return WatchEvent(WatchEventType.REMOVED, self.position, before if after is None else after)
        return None

    def __repr__(self) -> str:
        return f"<WatchCursor at {self.position}, {'synced' if self.is_synced else 'not synced'}>"

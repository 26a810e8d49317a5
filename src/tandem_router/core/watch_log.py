"""The last events in a ring, by revision: what a watch resumes from.

`since(r)` has no gap and no repeat, or says that r is compacted (etcd's rule).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from tandem_router.core.events import Event
from tandem_router.errors import Reason, TandemError

__all__ = ["WatchLog"]


class WatchLog:
    """Events with contiguous revisions, oldest dropped beyond `capacity`."""

    def __init__(self, capacity: int = 65_536) -> None:
        """capacity: events kept; an event holds a few hundred bytes."""
        if capacity < 1:
            raise ValueError(f"capacity {capacity} is below 1")
        self._events: deque[Event] = deque(maxlen=capacity)
        self._revision = 0

    @property
    def revision(self) -> int:
        """Of the newest event; 0 before the first."""
        return self._revision

    @property
    def oldest_revision(self) -> int:
        """The lowest revision that `since` accepts: everything after it is kept."""
        return self._events[0].revision - 1 if self._events else self._revision

    def append(self, events: Iterable[Event]) -> None:
        """Keep events; raises ValueError when one does not follow the newest."""
        for event in events:
            if event.revision != self._revision + 1:
                raise ValueError(f"event revision {event.revision} does not follow {self._revision}")
            self._events.append(event)
            self._revision = event.revision

    def since(self, revision: int) -> tuple[Event, ...]:
        """The events after `revision`, in order; empty at the newest.

        Raises TandemError(REVISION_COMPACTED) with oldest_revision for one that is too old, and for one from the
        future: both mean that the caller's history is not this store's.
        """
        if not self.oldest_revision <= revision <= self._revision:
            raise TandemError(
                Reason.REVISION_COMPACTED,
                f"revision {revision} is outside the history kept, {self.oldest_revision} to {self._revision}",
                field="resume_revision",
                metadata={"oldest_revision": str(self.oldest_revision), "newest_revision": str(self._revision)},
            )
        skipped = revision - self.oldest_revision
        return tuple(self._events)[skipped:]

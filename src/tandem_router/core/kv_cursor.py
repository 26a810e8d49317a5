"""Following a worker's KV events without a gap: what to do with a batch, and where to subscribe after a loss.

The numbers of a stream say whether anything is missing. What is missing is asked for once, by subscribing where it
begins; an engine that no longer has it says so (OUT_OF_RANGE), and one that lost it on the way ends the stream
(DATA_LOSS). Then all that is known of the worker's cache is dropped: an empty index costs a prefix match, a stale one
sends requests to blocks that are gone (smg 13.1, trap 13). Ranks count by themselves, but a subscription has one start:
where several were seen nothing can be resumed.
"""

from __future__ import annotations

from dataclasses import dataclass

from tandem_router.model.kv_events import KvBatch

__all__ = ["Apply", "Clear", "Directive", "KvCursor", "Subscribe"]


@dataclass(frozen=True, slots=True)
class Apply:
    """Enter the batch's events into the index."""

    batch: KvBatch


@dataclass(frozen=True, slots=True)
class Clear:
    """Drop all that is known of the worker's cache, on every rank."""


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Leave the stream, if it is still open, and subscribe anew."""

    resume_at: int
    """Sequence number of the first batch wanted; 0 = from the present state."""


Directive = Apply | Clear | Subscribe


class KvCursor:
    """One worker in one epoch; begins without a subscription and knowing nothing."""

    def __init__(self) -> None:
        self._last: dict[int | None, int] = {}
        self._is_resuming = False

    @property
    def last(self) -> int | None:
        """Number of the last batch applied; None while nothing was since the last Clear, or several ranks were."""
        return next(iter(self._last.values())) if len(self._last) == 1 else None

    def begin(self) -> tuple[Directive, ...]:
        """The first subscription."""
        return self._anew()

    def batch(self, batch: KvBatch) -> tuple[Directive, ...]:
        """A batch came: Apply it, nothing, or what makes good for a gap."""
        last = self._last.get(batch.dp_rank)
        if batch.is_snapshot or (last is None and not self._is_resuming):
            return self._take(batch)
        if not batch.events:
            # A load alone repeats the last number; one that is ahead is news of batches that did not come.
            return () if last is None or batch.sequence <= last else self._missing()
        if last is None or batch.sequence <= last:
            # A number that goes back, or another rank's where one was resumed: another publisher than we knew.
            return self._anew()
        return self._take(batch) if batch.sequence == last + 1 else self._missing()

    def broken(self) -> tuple[Directive, ...]:
        """The stream ended, or its connection broke, in the same life of the worker."""
        return self._anew() if self.last is None else self._resume(self.last + 1)

    def lost(self) -> tuple[Directive, ...]:
        """The engine has not kept what was asked for, or said that it lost something (KV_EVENTS_LOST)."""
        return self._anew()

    def _take(self, batch: KvBatch) -> tuple[Directive, ...]:
        self._is_resuming = False
        self._last[batch.dp_rank] = batch.sequence
        return (Apply(batch),) if batch.events else ()

    def _missing(self) -> tuple[Directive, ...]:
        if self._is_resuming or self.last is None:
            return self._anew()
        return self._resume(self.last + 1)

    def _resume(self, resume_at: int) -> tuple[Directive, ...]:
        self._is_resuming = True
        return (Subscribe(resume_at),)

    def _anew(self) -> tuple[Directive, ...]:
        knew = bool(self._last)
        self._last.clear()
        self._is_resuming = False
        return (Clear(), Subscribe(0)) if knew else (Subscribe(0),)

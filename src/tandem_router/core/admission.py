"""Who may run now, who waits, and who is turned away: a limit of running requests and a bounded queue before it.

The queue goes by priority, then by arrival. There is no ageing: a steady stream of higher priorities keeps lower ones
waiting for as long as it lasts, and their queue timeout is what ends that. A slot that becomes free goes to the first
in the queue in the same step, so nobody who arrives later can take it.

The queue is about the router's own limit only. A request whose model has no place is not kept here: it fails when it
runs, so that its client can go elsewhere at once.
"""

from __future__ import annotations

import enum
from bisect import bisect_left, insort
from dataclasses import dataclass

__all__ = ["Admission", "Entry", "Standing", "Ticket"]


class Entry(enum.StrEnum):
    """What becomes of an arrival."""

    RUNS = "RUNS"
    WAITS = "WAITS"
    FULL = "FULL"
    """Neither a slot nor a place in the queue; nothing is kept of it."""


@dataclass(frozen=True, slots=True, order=True)
class Ticket:
    """One arrival; tickets sort in the order in which they run."""

    precedence: int
    """The negated priority, so that higher priorities sort first."""
    number: int
    """Of arrival, from 1."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a waiting request is."""

    position: int
    """Requests ahead of it."""
    length: int
    """Requests in the queue, this one included."""


class Admission:
    """The limit and the queue of one router."""

    def __init__(self, *, max_running: int, max_queued: int) -> None:
        """max_running: at least 1 or nothing ever runs. max_queued: 0 turns away what cannot run at once."""
        self._max_running = max_running
        self._max_queued = max_queued
        self._running: set[Ticket] = set()
        self._queue: list[Ticket] = []
        self._arrivals = 0

    def arrive(self, priority: int) -> tuple[Entry, Ticket]:
        """Take a request in, let it wait, or turn it away; higher priorities go first."""
        self._arrivals += 1
        ticket = Ticket(-priority, self._arrivals)
        if len(self._running) < self._max_running:
            self._running.add(ticket)
            return Entry.RUNS, ticket
        if len(self._queue) >= self._max_queued:
            return Entry.FULL, ticket
        insort(self._queue, ticket)
        return Entry.WAITS, ticket

    def leave(self, ticket: Ticket) -> Ticket | None:
        """A request has ended, running or waiting; returns the one that runs in its stead, if any.

        A ticket that is not in here changes nothing.
        """
        if ticket in self._running:
            self._running.remove(ticket)
            if not self._queue:
                return None
            following = self._queue.pop(0)
            self._running.add(following)
            return following
        index = bisect_left(self._queue, ticket)
        if index < len(self._queue) and self._queue[index] == ticket:
            del self._queue[index]
        return None

    def standing(self, ticket: Ticket) -> Standing | None:
        """Where a request waits, or None when it does not."""
        index = bisect_left(self._queue, ticket)
        if index == len(self._queue) or self._queue[index] != ticket:
            return None
        return Standing(index, len(self._queue))

    @property
    def running(self) -> int:
        """Slots that are taken."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    def __repr__(self) -> str:
        return f"<Admission {self.running} of {self._max_running} running, {self.waiting} waiting>"

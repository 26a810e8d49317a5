"""What happened to cached blocks, numbered, for routers that keep a prefix index."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["KvEvent", "KvEventKind", "KvEventLog"]


class KvEventKind(enum.Enum):
    """What a KV event says."""

    STORED = "stored"
    REMOVED = "removed"
    CLEARED = "cleared"


@dataclass(frozen=True, slots=True)
class KvEvent:
    """One change. `sequence` rises by one from 1. A STORED event names one or more blocks of one chain, parents first:
    `token_ids` are their tokens in order and `parent_hash` is the block before the first (None at a prompt's start).
    A REMOVED event only names hashes; CLEARED names nothing.
    """

    sequence: int
    kind: KvEventKind
    block_hashes: tuple[int, ...] = ()
    parent_hash: int | None = None
    token_ids: tuple[int, ...] = ()
    block_size: int = 0
    adapter: str | None = None


class KvEventLog:
    """The newest events (at most `capacity`) and whoever listens. Not thread-safe: it lives on the event loop."""

    def __init__(self, capacity: int = 8192) -> None:
        self._events: deque[KvEvent] = deque(maxlen=capacity)
        self._subscribers: list[Callable[[KvEvent], None]] = []
        self._last = 0

    @property
    def last_sequence(self) -> int:
        """The newest event's number; 0 before the first."""
        return self._last

    @property
    def oldest_sequence(self) -> int:
        """The oldest kept event's number; `last_sequence + 1` when none is kept."""
        return self._events[0].sequence if self._events else self._last + 1

    def record(
        self,
        kind: KvEventKind,
        *,
        block_hashes: tuple[int, ...] = (),
        parent_hash: int | None = None,
        token_ids: tuple[int, ...] = (),
        block_size: int = 0,
        adapter: str | None = None,
    ) -> KvEvent:
        """Number the event, keep it, and tell the subscribers in the order they came."""
        self._last += 1
        event = KvEvent(self._last, kind, block_hashes, parent_hash, token_ids, block_size, adapter)
        self._events.append(event)
        for callback in tuple(self._subscribers):
            callback(event)
        return event

    def since(self, sequence: int) -> tuple[KvEvent, ...] | None:
        """Events after `sequence` (0 = all), or None when some of them are no longer kept: resync instead."""
        if sequence + 1 < self.oldest_sequence:
            return None
        return tuple(event for event in self._events if event.sequence > sequence)

    def subscribe(self, callback: Callable[[KvEvent], None]) -> Callable[[], None]:
        """Call `callback` with each event from now on; it must not raise or block. Returns what ends it; idempotent."""
        self._subscribers.append(callback)

        def unsubscribe() -> None:
            if callback in self._subscribers:
                self._subscribers.remove(callback)

        return unsubscribe

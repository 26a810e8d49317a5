"""A Store that keeps nothing beyond the process: the registry itself is the only copy."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["InMemoryStore"]


class InMemoryStore:
    """Accepts every batch at once. It keeps counts and no events: history for watches is the watch log's, bounded."""

    def __init__(self) -> None:
        self.batches = 0
        self.events = 0

    async def commit(self, events: Sequence[object]) -> None:
        """Count the batch; never fails and never suspends."""
        self.batches += 1
        self.events += len(events)

    def __repr__(self) -> str:
        return f"<InMemoryStore {self.events} events in {self.batches} batches>"

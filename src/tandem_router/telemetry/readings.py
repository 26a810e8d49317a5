"""What is live now, read on the loop and shown to the exporters' threads; and how late the loop is."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from tandem_router.model.ids import RankKey, WorkerId
from tandem_router.model.worker import Worker

__all__ = ["Fleet", "KnownModels", "Pulse", "Readings", "Snapshot"]

MAX_RANKS = 1000
"""Ranks with a time series of their own."""
MAX_MODELS = 100
"""Models with time series of their own; the rest is "other"."""
OTHER = "other"


Snapshot = Callable[[], Mapping[WorkerId, Worker]]
"""All workers now: an immutable mapping, the same object until something changes."""


@dataclass(frozen=True, slots=True)
class Readings:
    """One look at the router; frozen, so any thread may keep it."""

    live_requests: int = 0
    queued_requests: int = 0
    live_attempts: int = 0
    live_rooms: int = 0
    workers: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """By (status, type)."""
    in_flight: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """Open legs by (worker id, rank), zeroes included."""


class Fleet:
    """Reads workers and the legs on them; what only a change of the fleet can change is read at a change."""

    def __init__(self, workers: Snapshot, in_flight: Callable[[RankKey], int]) -> None:
        self._workers = workers
        self._in_flight = in_flight
        self._seen: Mapping[WorkerId, Worker] | None = None
        self._kinds: dict[tuple[str, str], int] = {}
        self._ranks: list[tuple[tuple[str, str], RankKey]] = []

    def read(self) -> tuple[Mapping[tuple[str, str], int], Mapping[tuple[str, str], int]]:
        """Workers by (status, type), and open legs by (worker id, rank)."""
        workers = self._workers()
        if workers is not self._seen:
            self._seen = workers
            self._kinds = dict(Counter((one.status.value, one.worker_type.value) for one in workers.values()))
            keys = [one.rank_key(rank.dp_rank) for one in workers.values() for rank in one.ranks]
            self._ranks = [(_rank_label(key, index), key) for index, key in enumerate(keys)]
        legs: dict[tuple[str, str], int] = {}
        for label, key in self._ranks:
            legs[label] = legs.get(label, 0) + self._in_flight(key)
        return self._kinds, legs


def _rank_label(key: RankKey, index: int) -> tuple[str, str]:
    return (str(key.worker_id), str(key.dp_rank)) if index < MAX_RANKS else (OTHER, OTHER)


class KnownModels:
    """Turns the model that a client names into a label with few values: its id, or "other"."""

    def __init__(self, workers: Snapshot) -> None:
        self._workers = workers
        self._seen: Mapping[WorkerId, Worker] | None = None
        self._names: dict[str, str] = {}

    def label(self, name: str) -> str:
        """The id of a served model for its id or alias; the only one for no name."""
        workers = self._workers()
        if workers is not self._seen:
            self._seen = workers
            self._names = _names(workers.values())
        return self._names.get(name, OTHER)


def _names(workers: Iterable[Worker]) -> dict[str, str]:
    cards = {card.id: card for worker in workers for card in worker.models}
    kept = list(cards.values())[:MAX_MODELS]
    names = {alias: card.id for card in kept for alias in card.aliases}
    names.update((card.id, card.id) for card in kept)
    if len(cards) == 1:
        names[""] = kept[0].id
    return names


class Pulse:
    """Looks at the router a few times a second and measures how late the loop lets it."""

    def __init__(self, look: Callable[[], Readings], lag: Callable[[float], None]) -> None:
        """look: called on the loop. lag: given seconds."""
        self._look = look
        self._lag = lag
        self.readings = Readings()
        """The last look."""

    async def run(self, interval_s: float) -> None:
        """Beat until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            self.readings = self._look()
            due_s = loop.time() + interval_s
            await asyncio.sleep(interval_s)
            self._lag(max(0.0, loop.time() - due_s))

"""Who owes what to whom: every open leg of every attempt, counted under the life of the worker it runs on.

In-flight is the number of rows, never a counter that is raised here and lowered there: the rivals' load counters drift
below zero or never fall because two places must agree (field-survey, 2D). A row is opened when a leg is reserved and
closed exactly once; the ledger is empty when the router is idle.

A decode leg that fetches its blocks from a prefill worker whose own leg has ended is noted under that worker too. It is
no load there (a prefill's load ends with its leg, DESIGN 4), but the worker is not to be stopped under it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tandem_router.model.ids import RankKey, WorkerId
from tandem_router.model.pairing import LegRole

__all__ = ["LedgerStatistics", "LegLedger", "LegRow"]


@dataclass(frozen=True, slots=True)
class LegRow:
    """One open leg."""

    leg_id: str
    key: RankKey
    role: LegRole
    prompt_tokens: int
    opened_at_s: float


@dataclass(frozen=True, slots=True)
class LedgerStatistics:
    """What is open now and what has ever been opened and closed."""

    open: int
    opened_total: int
    closed_total: int
    by_rank: Mapping[RankKey, int]


class LegLedger:
    """Rows of open legs. Not thread-safe: one event loop owns it."""

    def __init__(self) -> None:
        self._rows: dict[str, LegRow] = {}
        self._by_rank: dict[RankKey, dict[str, LegRow]] = {}
        self._opened = 0
        self._closed = 0
        self._fetches: dict[str, WorkerId] = {}
        self._on_less: list[Callable[[WorkerId], None]] = []

    def on_less(self, listener: Callable[[WorkerId], None]) -> None:
        """Call `listener` with a worker after a leg on it, or a fetch from it, has ended.

        It must return at once and not raise.
        """
        self._on_less.append(listener)

    def open(self, row: LegRow) -> None:
        """Enter a leg; a leg id is entered once in a ledger's life."""
        if row.leg_id in self._rows:
            raise ValueError(f"leg {row.leg_id} is already open")
        self._rows[row.leg_id] = row
        self._by_rank.setdefault(row.key, {})[row.leg_id] = row
        self._opened += 1

    def close(self, leg_id: str) -> None:
        """End a leg. Closing one that is not open is a fault of the caller and raises KeyError."""
        row = self._rows.pop(leg_id)
        rank = self._by_rank[row.key]
        del rank[leg_id]
        if not rank:
            del self._by_rank[row.key]
        self._closed += 1
        self._tell(row.key.worker_id)
        self.end_fetch(leg_id)

    def begin_fetch(self, leg_id: str, worker_id: WorkerId) -> None:
        """An open leg has been sent to fetch blocks from a worker, until `end_fetch` or its close.

        Of a leg that is not open: a fault of the caller, KeyError.
        """
        self._fetches[self._rows[leg_id].leg_id] = worker_id

    def end_fetch(self, leg_id: str) -> None:
        """The leg has its blocks; idempotent."""
        worker_id = self._fetches.pop(leg_id, None)
        if worker_id is not None:
            self._tell(worker_id)

    def _tell(self, worker_id: WorkerId) -> None:
        for listener in self._on_less:
            listener(worker_id)

    def is_open(self, leg_id: str) -> bool:
        """Whether the leg has been opened and not closed."""
        return leg_id in self._rows

    def in_flight(self, key: RankKey) -> int:
        """Open legs of one rank in one epoch."""
        return len(self._by_rank.get(key, ()))

    def in_flight_of_worker(self, worker_id: WorkerId) -> int:
        """Open legs of a worker over all its ranks and epochs."""
        return sum(len(rows) for key, rows in self._by_rank.items() if key.worker_id == worker_id)

    def fetching_from(self, worker_id: WorkerId) -> int:
        """Legs on other workers that fetch blocks from this one."""
        return sum(source == worker_id for source in self._fetches.values())

    def in_flight_of_life(self, worker_id: WorkerId, epoch: int) -> int:
        """Open legs of one life of a worker over all its ranks: what closing its connection waits for."""
        return sum(
            len(rows) for key, rows in self._by_rank.items() if key.worker_id == worker_id and key.epoch == epoch
        )

    def rows(self) -> tuple[LegRow, ...]:
        """The open legs, oldest first."""
        return tuple(self._rows.values())

    def statistics(self) -> LedgerStatistics:
        """A frozen reading for admin rpcs, metrics and assertions."""
        return LedgerStatistics(
            open=len(self._rows),
            opened_total=self._opened,
            closed_total=self._closed,
            by_rank={key: len(rows) for key, rows in self._by_rank.items()},
        )

    def __repr__(self) -> str:
        return f"<LegLedger {len(self._rows)} open, {self._closed} closed>"

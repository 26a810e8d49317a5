"""When the last leg of a worker, or of one of its lives, is closed: woken by the ledger, polls nothing.

A worker is busy too while a decode leg elsewhere fetches blocks from it, although its own leg has ended; not a life of
it, which only says whose connection may be closed: blocks do not travel over ours.
"""

from __future__ import annotations

import asyncio

from tandem_router.core.ledger import LegLedger
from tandem_router.model.ids import WorkerId

__all__ = ["Idleness"]

_Waiter = tuple[int | None, asyncio.Future[None]]


class Idleness:
    """Waits for legs to end."""

    def __init__(self, ledger: LegLedger) -> None:
        self._ledger = ledger
        self._waiting: dict[WorkerId, list[_Waiter]] = {}
        ledger.on_less(self._ended)

    def legs(self, worker_id: WorkerId, epoch: int | None = None) -> int:
        """Open legs of a worker over all its ranks, of one epoch or of all; with all, also those that fetch from it."""
        if epoch is None:
            return self._ledger.in_flight_of_worker(worker_id) + self._ledger.fetching_from(worker_id)
        return self._ledger.in_flight_of_life(worker_id, epoch)

    async def wait(self, worker_id: WorkerId, epoch: int | None = None) -> None:
        """Return once no such leg is open, at once when none is, or when woken by `wake`."""
        if not self.legs(worker_id, epoch):
            return
        waiter: _Waiter = (epoch, asyncio.get_running_loop().create_future())
        self._waiting.setdefault(worker_id, []).append(waiter)
        try:
            await waiter[1]
        finally:
            waiting = self._waiting.get(worker_id, [])
            if waiter in waiting:
                waiting.remove(waiter)
                if not waiting:
                    del self._waiting[worker_id]

    def wake(self, worker_id: WorkerId) -> None:
        """Let everybody who waits for this worker look again."""
        for _, future in self._waiting.pop(worker_id, ()):
            if not future.done():
                future.set_result(None)

    def _ended(self, worker_id: WorkerId) -> None:
        for epoch, future in self._waiting.get(worker_id, ()):
            if not future.done() and not self.legs(worker_id, epoch):
                future.set_result(None)

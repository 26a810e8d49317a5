"""Keeps the health board true: beats from the loop, and says of every name whether it serves.

Nothing here waits for anything but the loop's next turn, so that a slow store or a held lock does not look like a
wedged loop to whoever restarts those.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from tandem_router.model.ids import WorkerId
from tandem_router.model.spec import WorkerType
from tandem_router.model.worker import Worker, WorkerStatus
from tandem_router.runtime.models import ServedModel, served_models
from tandem_router.services.contract import Board
from tandem_router.wire.model import Fits

__all__ = ["LIVENESS", "READINESS", "Heartbeat"]

LIVENESS = "liveness"
READINESS = "readiness"

Snapshot = Callable[[], Mapping[WorkerId, Worker]]
"""All workers now: an immutable mapping, the same object until something changes."""


class Heartbeat:
    """The names: "" and readiness (takes requests), liveness (the loop turns), each service, model/<id or alias>.

    model/<name> serves while a READY worker, or a READY prefill and decode that fit each other, can answer for it. A
    router without workers takes requests (and refuses them with a reason), so readiness does not depend on workers.
    """

    def __init__(self, board: Board, workers: Snapshot, fits: Fits, services: Sequence[str]) -> None:
        self._board = board
        self._workers = workers
        self._fits = fits
        self._services = tuple(services)
        self._is_draining = False
        self._seen: Mapping[WorkerId, Worker] | None = None
        self._models: dict[str, bool] = {}

    async def run(self, interval_s: float) -> None:
        """Beat until cancelled."""
        while True:
            self.beat()
            await asyncio.sleep(interval_s)

    def beat(self) -> None:
        """Beat once and bring the board up to date."""
        workers = self._workers()
        if workers is not self._seen:
            self._seen = workers
            self._models = {}
            for model in served_models(workers.values()):
                is_available = _is_available(model, [workers[one] for one in model.worker_ids], self._fits)
                for name in (model.card.id, *model.card.aliases):
                    self._models[f"model/{name}"] = is_available
        self._write()
        self._board.beat()

    def drain(self) -> None:
        """Say NOT_SERVING for everything but liveness, now and from now on; idempotent."""
        self._is_draining = True
        self._write()

    def _write(self) -> None:
        takes = not self._is_draining
        table = {"": takes, READINESS: takes, LIVENESS: True}
        table.update(dict.fromkeys(self._services, takes))
        table.update({name: takes and available for name, available in self._models.items()})
        self._board.put(table)


def _is_available(model: ServedModel, workers: Sequence[Worker], fits: Fits) -> bool:
    if model.ready_regular:
        return True
    ready = [worker for worker in workers if worker.status is WorkerStatus.READY]
    prefills = [worker for worker in ready if worker.worker_type is WorkerType.PREFILL]
    decodes = [worker for worker in ready if worker.worker_type is WorkerType.DECODE]
    return any(fits(prefill, decode) for prefill in prefills for decode in decodes)

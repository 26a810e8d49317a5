"""Keeps the health board true: beats from the loop, and says of every name whether it serves."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from tandem_router.model.spec import WorkerType
from tandem_router.model.worker import Worker, WorkerStatus
from tandem_router.runtime.models import ServedModel
from tandem_router.services.contract import Board, Registry
from tandem_router.wire.model import Fits

__all__ = ["LIVENESS", "READINESS", "Heartbeat"]

LIVENESS = "liveness"
READINESS = "readiness"


class Heartbeat:
    """The names: "" and readiness (takes requests), liveness (the loop turns), each service, model/<id or alias>."""

    def __init__(self, board: Board, registry: Registry, fits: Fits, services: Sequence[str]) -> None:
        self._board = board
        self._registry = registry
        self._fits = fits
        self._services = tuple(services)
        self._is_draining = False
        self._seen_revision = -1
        self._models: dict[str, bool] = {}

    async def run(self, interval_s: float) -> None:
        """Beat until cancelled."""
        while True:
            await self.beat()
            await asyncio.sleep(interval_s)

    async def beat(self) -> None:
        """Beat once and bring the board up to date."""
        if self._registry.revision != self._seen_revision:
            self._seen_revision = self._registry.revision
            workers = {worker.id: worker for worker in await self._registry.list_workers()}
            self._models = {}
            for model in self._registry.models():
                serving = [workers[one] for one in model.worker_ids if one in workers]
                is_available = _is_available(model, serving, self._fits)
                for name in (model.card.id, *model.card.aliases):
                    self._models[f"model/{name}"] = is_available
        self._write()
        self._board.beat()

    def drain(self) -> None:
        """Say NOT_SERVING for everything but liveness, now and from now on."""
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

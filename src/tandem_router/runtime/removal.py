"""The REMOVE_WORKER job: wait until no leg is open on a worker or its time is up, then forget it."""

from __future__ import annotations

import asyncio

from tandem_router.core.commands import BeginStep, EndJob, EndStep
from tandem_router.core.ledger import LegLedger, LegRow
from tandem_router.model.ids import JobId, WorkerId
from tandem_router.model.job import JobState, StepState
from tandem_router.runtime.pipeline import Pipeline

__all__ = ["Idleness", "Removal"]


class Idleness:
    """Tells when a worker's last leg is closed; woken by the ledger, polls nothing."""

    def __init__(self, ledger: LegLedger) -> None:
        self._ledger = ledger
        self._waiting: dict[WorkerId, list[asyncio.Future[None]]] = {}
        ledger.on_close(self._closed)

    async def wait_idle(self, worker_id: WorkerId) -> None:
        """Return once no leg of the worker is open, over all its ranks and epochs; at once when none is."""
        while self._ledger.in_flight_of_worker(worker_id):
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(worker_id, []).append(future)
            try:
                await future
            finally:
                waiting = self._waiting.get(worker_id, [])
                if future in waiting:
                    waiting.remove(future)
                    if not waiting:
                        del self._waiting[worker_id]

    def _closed(self, row: LegRow) -> None:
        worker_id = row.key.worker_id
        if worker_id in self._waiting and not self._ledger.in_flight_of_worker(worker_id):
            for future in self._waiting.pop(worker_id):
                if not future.done():
                    future.set_result(None)


class Removal:
    """Carries out removals; one object serves all jobs."""

    def __init__(self, pipeline: Pipeline, ledger: LegLedger, idleness: Idleness) -> None:
        self._pipeline = pipeline
        self._ledger = ledger
        self._idleness = idleness

    async def run(self, job_id: JobId, worker_id: WorkerId) -> None:
        """Drain and forget the worker. It holds no slot: waiting is all it does."""
        drain = self._pipeline.registry.drain_of(worker_id)
        timeout_s = None if drain is None else drain.timeout_s
        legs = self._ledger.in_flight_of_worker(worker_id)
        await self._pipeline.submit(BeginStep(job_id, "drain", f"waiting for {legs} legs" if legs else "idle"))
        try:
            async with asyncio.timeout(timeout_s):
                await self._idleness.wait_idle(worker_id)
            detail = "idle"
        except TimeoutError:
            legs = self._ledger.in_flight_of_worker(worker_id)
            detail = f"{legs} legs still open after {timeout_s:g} s; they are lost with the worker"
        await self._pipeline.submit(EndStep(job_id, "drain", StepState.SUCCEEDED, detail))
        await self._pipeline.submit(EndJob(job_id, JobState.SUCCEEDED))

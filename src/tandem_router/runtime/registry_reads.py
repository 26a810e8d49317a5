"""What is asked of the registry: workers, jobs, models; every answer is of one moment, and nothing changes by it."""

from __future__ import annotations

from collections.abc import Sequence

from tandem_router.core.registry import Registry
from tandem_router.errors import Reason, TandemError
from tandem_router.model.ids import JobId, WorkerId, canonical_uuid
from tandem_router.model.job import Job
from tandem_router.model.worker import Worker
from tandem_router.runtime.load_samples import LoadSamples
from tandem_router.runtime.models import ServedModel, served_models
from tandem_router.runtime.pipeline import Pipeline

__all__ = ["RegistryReads", "job_id_of", "worker_id_of"]


class RegistryReads:
    """The reading half of the control loop's face."""

    def __init__(self, registry: Registry, pipeline: Pipeline, loads: LoadSamples) -> None:
        self._registry = registry
        self.pipeline = pipeline
        """The one way in which anything changes; what has expired goes before it is read."""
        self._loads = loads

    async def get_worker(self, worker_id: str) -> Worker:
        """The worker; raises TandemError: INVALID_WORKER_ID, WORKER_NOT_FOUND."""
        await self.pipeline.expire()
        worker = self._registry.worker(worker_id_of(worker_id))
        if worker is None:
            raise TandemError(
                Reason.WORKER_NOT_FOUND,
                f"no worker has the id {worker_id}",
                field="worker_id",
                metadata={"worker_id": worker_id},
            )
        return worker

    async def list_workers(self) -> tuple[Worker, ...]:
        """Every worker, oldest first."""
        await self.pipeline.expire()
        return tuple(self._registry.workers().values())

    async def with_loads(self, workers: Sequence[Worker]) -> tuple[Worker, ...]:
        """The workers with what their engines say about their load, freshly read where that is due; never raises."""
        return await self._loads.read(workers)

    async def get_job(self, job_id: str) -> Job:
        """The job; raises TandemError: INVALID_REQUEST for an id that is not a UUID, JOB_NOT_FOUND."""
        await self.pipeline.expire()
        job = self._registry.jobs.get(job_id_of(job_id))
        if job is None:
            raise TandemError(Reason.JOB_NOT_FOUND, f"no job has the id {job_id}", field="job_id")
        return job

    async def list_jobs(self) -> tuple[Job, ...]:
        """Every job whose record is kept, oldest first."""
        await self.pipeline.expire()
        return self._registry.jobs.all()

    def models(self) -> tuple[ServedModel, ...]:
        """The models of all registered workers, in the order of registration."""
        return served_models(self._registry.workers().values())

    @property
    def revision(self) -> int:
        """Store-wide; of the last change."""
        return self._registry.revision


def worker_id_of(text: str) -> WorkerId:
    """The id that a caller wrote, canonical; raises TandemError(INVALID_WORKER_ID)."""
    canonical = canonical_uuid(text)
    if canonical is None:
        raise TandemError(Reason.INVALID_WORKER_ID, f"{text!r} is not a UUID", field="worker_id")
    return WorkerId(canonical)


def job_id_of(text: str) -> JobId:
    """The id that a caller wrote, canonical; raises TandemError(INVALID_REQUEST)."""
    canonical = canonical_uuid(text)
    if canonical is None:
        raise TandemError(Reason.INVALID_REQUEST, f"{text!r} is not a UUID", field="job_id")
    return JobId(canonical)

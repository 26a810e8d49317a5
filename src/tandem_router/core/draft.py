"""Writing a proposal: events with their revisions, directives, and the checks that several commands share."""

from __future__ import annotations

from collections.abc import Iterable

from tandem_router.core.commands import CancelJob, Directive, Proposal, SubmitJob
from tandem_router.core.events import (
    ConditionChanged,
    Event,
    JobAdjusted,
    JobCreated,
    JobEnded,
    JobStepChanged,
    WorkerStatusChanged,
)
from tandem_router.core.jobs import steps_of
from tandem_router.core.registry import Registry
from tandem_router.errors import Reason, TandemError
from tandem_router.model.failure import Failure
from tandem_router.model.ids import JobId, WorkerId
from tandem_router.model.job import Job, JobState, JobStep, JobType
from tandem_router.model.spec import ConnectionMode, WorkerSpec
from tandem_router.model.worker import Condition, Worker, WorkerStatus

__all__ = ["Draft", "check_spec", "check_url_free", "known_worker"]

_QUEUE_FULL_RETRY_S = 1.0
"""Registrations that work take about a second; the hint only has to spread repeats."""


class Draft:
    """Events being written. Nothing is applied yet, so the registry still shows what was before all of them."""

    def __init__(self, registry: Registry, now_s: float) -> None:
        self.registry = registry
        self.now_s = now_s
        self.events: list[Event] = []
        self.directives: list[Directive] = []

    def stamp(self) -> tuple[int, float]:
        """Revision and time of the next event."""
        return self.registry.revision + len(self.events) + 1, self.now_s

    def conditions(self, worker: Worker, conditions: Iterable[Condition]) -> None:
        """Note the claims that differ from what the worker shows."""
        shown = {condition.type: condition for condition in worker.conditions}
        for new in conditions:
            old = shown.get(new.type)
            if old is None or (old.is_true, old.reason, old.message) != (new.is_true, new.reason, new.message):
                self.events.append(
                    ConditionChanged(*self.stamp(), worker.id, new.type, new.is_true, new.reason, new.message)
                )

    def condition(self, worker: Worker, type_: str, is_true: bool, reason: str, message: str) -> None:
        """Note one claim."""
        self.conditions(worker, (Condition(type_, is_true, reason, message, self.now_s),))

    def status(self, worker: Worker, status: WorkerStatus, failure: Failure | None) -> None:
        """Note a status and the SERVING condition that goes with it."""
        self.events.append(WorkerStatusChanged(*self.stamp(), worker.id, status, failure))
        if failure is None:
            self.condition(worker, "SERVING", True, "SERVING", "")
        else:
            self.condition(worker, "SERVING", False, failure.reason, failure.sentence)

    def step(self, job: Job, index: int, step: JobStep, next_try_at_s: float | None = None) -> None:
        """Note a step."""
        self.events.append(JobStepChanged(*self.stamp(), job.id, index, step, next_try_at_s))

    def submit(
        self,
        job_id: JobId,
        job_type: JobType,
        worker_id: WorkerId,
        generation: int,
        deadline_at_s: float | None = None,
    ) -> None:
        """Note a fresh job and have it carried out in its turn."""
        steps = steps_of(job_type)
        self.events.append(JobCreated(*self.stamp(), job_id, job_type, worker_id, steps, generation, deadline_at_s))
        self.directives.append(SubmitJob(job_id))

    def end(self, job: Job, state: JobState, failure: Failure | None = None) -> None:
        """Note the job's end."""
        self.events.append(JobEnded(*self.stamp(), job.id, state, failure))

    def supersede(self, job: Job, sentence: str) -> None:
        """End a job that something later has made pointless, and stop the work on it."""
        failure = Failure(Reason.REQUEST_CANCELLED, sentence, {"job_id": job.id})
        self.end(job, JobState.CANCELLED, failure)
        self.directives.append(CancelJob(job.id))

    def take_along(self, jobs: Iterable[Job], generation: int) -> None:
        """Jobs that a change does not concern carry the worker's new generation out just as well."""
        for job in jobs:
            self.events.append(JobAdjusted(*self.stamp(), job.id, generation, job.deadline_at_s))

    def check_queue(self, *, freed: int = 0) -> None:
        """Raise JOB_QUEUE_FULL unless there is room for a job; `freed`: jobs that the same proposal ends."""
        settings = self.registry.settings
        limit = settings.max_queued + settings.max_running
        count = self.registry.jobs.open_count
        if count - freed >= limit:
            raise TandemError(
                Reason.JOB_QUEUE_FULL,
                f"{count} jobs have not ended; the limit is {limit}",
                metadata={"open_jobs": str(count), "limit": str(limit)},
                retry_after_s=_QUEUE_FULL_RETRY_S,
            )

    def done(self, worker_id: WorkerId | None = None, job_id: JobId | None = None) -> Proposal:
        """The proposal; the ids say what the answer is about."""
        return Proposal(tuple(self.events), tuple(self.directives), worker_id, job_id)

    def stale(self, worker_id: WorkerId | None = None, job_id: JobId | None = None) -> Proposal:
        """The command came too late: nothing."""
        return Proposal((), (), worker_id, job_id, is_stale=True)


def known_worker(
    registry: Registry, worker_id: WorkerId, expected_generation: int | None = None, *, may_be_leaving: bool = True
) -> Worker:
    """The worker, if the caller may change it.

    Raises WORKER_NOT_FOUND; GENERATION_MISMATCH; WORKER_BEING_DELETED unless `may_be_leaving`.
    """
    worker = registry.worker(worker_id)
    if worker is None:
        raise TandemError(
            Reason.WORKER_NOT_FOUND,
            f"no worker has the id {worker_id}",
            field="worker_id",
            metadata={"worker_id": worker_id},
        )
    if expected_generation is not None and expected_generation != worker.generation:
        raise TandemError(
            Reason.GENERATION_MISMATCH,
            f"worker {worker_id} has the generation {worker.generation} and not {expected_generation}",
            field="expected_generation",
            metadata={
                "worker_id": worker_id,
                "expected_generation": str(expected_generation),
                "generation": str(worker.generation),
            },
        )
    if not may_be_leaving and worker.removal is not None:
        jobs = registry.jobs.open_of(worker_id)
        job_id = next((job.id for job in jobs if job.type is JobType.REMOVE_WORKER), "")
        raise TandemError(
            Reason.WORKER_BEING_DELETED,
            f"worker {worker_id} is being deleted by job {job_id}",
            field="worker_id",
            metadata={"worker_id": worker_id, "job_id": job_id},
        )
    return worker


def check_url_free(registry: Registry, url: str) -> None:
    """Raise WORKER_CREATE_IN_PROGRESS or WORKER_ALREADY_EXISTS when a worker holds the canonical URL."""
    holder = registry.at_url(url)
    if holder is None:
        return
    if holder.status is WorkerStatus.PENDING:
        raise TandemError(
            Reason.WORKER_CREATE_IN_PROGRESS,
            f"worker {holder.id} is being registered at {url}",
            field="spec.url",
            metadata={"worker_id": holder.id, "url": url, "job_id": holder.current_job or ""},
        )
    raise TandemError(
        Reason.WORKER_ALREADY_EXISTS,
        f"worker {holder.id} is {holder.status} at {url}",
        field="spec.url",
        metadata={"worker_id": holder.id, "url": url},
    )


def check_spec(spec: WorkerSpec) -> None:
    """Rules over several fields; ranges of single fields are the wire's."""
    if spec.connection_mode not in (None, ConnectionMode.GRPC):
        raise TandemError(
            Reason.FEATURE_NOT_IMPLEMENTED,
            f"connection mode {spec.connection_mode} is not carried out; use GRPC",
            field="spec.connection_mode",
        )
    if spec.dp_rank is not None and spec.dp_rank >= (spec.dp_size or 1):
        raise TandemError(
            Reason.INVALID_REQUEST,
            f"dp_rank {spec.dp_rank} is not below dp_size {spec.dp_size or 1}",
            field="spec.dp_rank",
        )

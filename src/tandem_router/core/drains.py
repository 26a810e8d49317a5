"""Taking workers out of routing, for a while or for good, and stopping jobs: rules like those of core.proposals."""

from __future__ import annotations

import math
from dataclasses import replace

from tandem_router.core.commands import (
    CancelJob,
    CloseClient,
    DeleteWorker,
    DrainWorker,
    Proposal,
    RefreshPairing,
    RequestCancel,
    UndrainWorker,
    WakeDrain,
)
from tandem_router.core.draft import Draft, known_worker
from tandem_router.core.events import (
    DrainLifted,
    DrainRequested,
    JobAdjusted,
    JobCancelRequested,
    JobCreated,
    JobStarted,
    WorkerRemoved,
)
from tandem_router.core.jobs import begun, steps_of
from tandem_router.errors import Reason, TandemError
from tandem_router.model.failure import Failure
from tandem_router.model.job import Job, JobState, JobType, StepState
from tandem_router.model.worker import Drain, Worker, WorkerStatus

__all__ = ["cancel", "delete", "drain", "end_registration", "finish_removal", "undrain"]


def drain(draft: Draft, command: DrainWorker) -> Proposal:
    """Cordon at once; a job waits for the legs. Said again, it replaces deadline and reason of the same job."""
    registry = draft.registry
    worker = known_worker(registry, command.worker_id, command.expected_generation, may_be_leaving=False)
    deadline_at_s = None if command.timeout_s is None else draft.now_s + command.timeout_s
    open_jobs = registry.jobs.open_of(worker.id)
    running = next((job for job in open_jobs if job.type is JobType.DRAIN_WORKER), None)
    started_at_s = draft.now_s if worker.drain is None else worker.drain.started_at_s
    wish = Drain(started_at_s, deadline_at_s, command.reason)
    if running is None:
        draft.check_queue()
    elif worker.drain == wish:
        return draft.done(worker.id, running.id)
    generation = worker.generation + 1
    draft.events.append(DrainRequested(*draft.stamp(), worker.id, wish, is_removal=False))
    draft.condition(worker, "DRAINING", True, "DRAIN_REQUESTED", command.reason)
    draft.take_along([job for job in open_jobs if job is not running], generation)
    if running is None:
        draft.submit(command.job_id, JobType.DRAIN_WORKER, worker.id, generation, deadline_at_s)
    else:
        draft.events.append(JobAdjusted(*draft.stamp(), running.id, generation, deadline_at_s))
        draft.directives.append(WakeDrain(worker.id))
    draft.directives.append(RefreshPairing(worker.id))
    return draft.done(worker.id, command.job_id if running is None else running.id)


def undrain(draft: Draft, command: UndrainWorker) -> Proposal:
    """Take the operator's wish back; its job is pointless then. Nothing happens where there is no wish."""
    worker = known_worker(draft.registry, command.worker_id, command.expected_generation, may_be_leaving=False)
    if worker.drain is None:
        return draft.done(worker.id)
    open_jobs = draft.registry.jobs.open_of(worker.id)
    for job in open_jobs:
        if job.type is JobType.DRAIN_WORKER:
            draft.supersede(job, f"worker {worker.id} was taken back by UndrainWorker")
    others = [job for job in open_jobs if job.type is not JobType.DRAIN_WORKER]
    _lift(draft, worker, others, is_removal=False)
    return draft.done(worker.id)


def delete(draft: Draft, command: DeleteWorker) -> Proposal:
    """Drain and forget; forget at once where nothing can run. What else is done to the worker is pointless then."""
    worker = known_worker(draft.registry, command.worker_id, command.expected_generation)
    open_jobs = draft.registry.jobs.open_of(worker.id)
    removal = next((job for job in open_jobs if job.type is JobType.REMOVE_WORKER), None)
    if removal is not None:
        return _delete_again(draft, command, worker, removal)
    # Nothing can run on a worker that never was READY, so there is nothing to wait for.
    standing = draft.registry.standing_of(worker.id)
    is_idle = command.force or standing in (WorkerStatus.PENDING, WorkerStatus.FAILED)
    if not is_idle:
        draft.check_queue(freed=len(open_jobs))
    for job in open_jobs:
        draft.supersede(job, f"worker {worker.id} was deleted")
    job_type, generation = JobType.REMOVE_WORKER, worker.generation + 1
    if is_idle:
        steps = steps_of(job_type)
        draft.events.append(JobCreated(*draft.stamp(), command.job_id, job_type, worker.id, steps, worker.generation))
        draft.events.append(JobStarted(*draft.stamp(), command.job_id))
        job = Job(command.job_id, job_type, worker.id, JobState.RUNNING, steps, 0, draft.now_s)
        finish_removal(draft, worker, job, "forced" if command.force else "nothing to drain")
        return draft.done(worker.id, command.job_id)
    deadline_at_s = _deletion_deadline(draft, command, worker)
    wish = Drain(draft.now_s, deadline_at_s)
    draft.events.append(DrainRequested(*draft.stamp(), worker.id, wish, is_removal=True))
    draft.condition(worker, "DRAINING", True, "DELETE_REQUESTED", "")
    draft.submit(command.job_id, job_type, worker.id, generation, deadline_at_s)
    draft.directives.append(RefreshPairing(worker.id))
    return draft.done(worker.id, command.job_id)


def _delete_again(draft: Draft, command: DeleteWorker, worker: Worker, removal: Job) -> Proposal:
    """The same job; a drain timeout that is stated replaces the first one."""
    if command.force:
        finish_removal(draft, worker, removal, "forced")
        draft.directives.append(CancelJob(removal.id))
    elif command.drain_timeout_s is not None and worker.removal is not None:
        deadline_at_s = _deletion_deadline(draft, command, worker)
        wish = replace(worker.removal, deadline_at_s=deadline_at_s)
        if wish != worker.removal:
            draft.events.append(DrainRequested(*draft.stamp(), worker.id, wish, is_removal=True))
            draft.events.append(JobAdjusted(*draft.stamp(), removal.id, worker.generation + 1, deadline_at_s))
            draft.directives.append(WakeDrain(worker.id))
    return draft.done(worker.id, removal.id)


def _deletion_deadline(draft: Draft, command: DeleteWorker, worker: Worker) -> float | None:
    timeout_s = command.drain_timeout_s
    if timeout_s is None:
        stated_s = worker.spec.health.drain_settle_s
        timeout_s = draft.registry.settings.drain_timeout_s if stated_s is None else stated_s
    return None if timeout_s == math.inf else draft.now_s + timeout_s


def finish_removal(draft: Draft, worker: Worker, job: Job, detail: str) -> None:
    """End the removal and forget the worker."""
    for index, step in enumerate(job.steps):
        if step.ended_at_s is None:
            closed = replace(
                begun(step, draft.now_s, detail) if step.started_at_s is None else step,
                ended_at_s=draft.now_s,
                state=StepState.SUCCEEDED,
                failure=None,
            )
            draft.step(job, index, closed)
    draft.end(job, JobState.SUCCEEDED)
    draft.events.append(WorkerRemoved(*draft.stamp(), worker.id, "deleted"))
    draft.directives.extend((CloseClient(worker.id), RefreshPairing(worker.id)))


def cancel(draft: Draft, command: RequestCancel) -> Proposal:
    """Undo what the job is for, where it can be; a job that dials stops when it next looks."""
    job = draft.registry.jobs.get(command.job_id)
    if job is None:
        raise TandemError(
            Reason.JOB_NOT_FOUND,
            f"no job has the id {command.job_id}",
            field="job_id",
            metadata={"job_id": command.job_id},
        )
    if job.state.is_final:
        raise TandemError(
            Reason.JOB_FINISHED,
            f"job {job.id} has {job.state}",
            field="job_id",
            metadata={"job_id": job.id, "state": str(job.state)},
        )
    said = f": {command.reason}" if command.reason else ""
    failure = Failure(Reason.REQUEST_CANCELLED, f"job {job.id} was cancelled{said}", {"job_id": job.id})
    worker = draft.registry.worker(job.worker_id)
    if not job.type.registers:
        # It only waits, so any point is a safe one.
        draft.end(job, JobState.CANCELLED, failure)
        draft.directives.append(CancelJob(job.id))
        if worker is not None:
            others = [other for other in draft.registry.jobs.open_of(worker.id) if other.id != job.id]
            _lift(draft, worker, others, is_removal=job.type is JobType.REMOVE_WORKER)
    elif job.state is JobState.PENDING:
        end_registration(draft, job, JobState.CANCELLED, failure)
        draft.directives.append(CancelJob(job.id))
    elif job.cancel is None:
        draft.events.append(JobCancelRequested(*draft.stamp(), job.id, failure))
        draft.directives.append(CancelJob(job.id))
    return draft.done(job.worker_id, job.id)


def end_registration(draft: Draft, job: Job, state: JobState, failure: Failure | None) -> None:
    """End a job that was to make its worker reachable; one that cannot be reached otherwise is FAILED."""
    draft.end(job, state, failure)
    worker = draft.registry.worker(job.worker_id)
    if worker is None or state is JobState.SUCCEEDED:
        return
    if draft.registry.standing_of(worker.id) is WorkerStatus.PENDING:
        known = failure or Failure(Reason.REQUEST_CANCELLED, f"job {job.id} was cancelled")
        draft.status(worker, WorkerStatus.FAILED, known)
        draft.directives.extend((CloseClient(worker.id, is_gone=False), RefreshPairing(worker.id)))


def _lift(draft: Draft, worker: Worker, others: list[Job], *, is_removal: bool) -> None:
    draft.events.append(DrainLifted(*draft.stamp(), worker.id, is_removal))
    left = worker.drain if is_removal else worker.removal
    if left is None:
        draft.condition(worker, "DRAINING", False, "NOT_DRAINING", "")
    else:
        draft.condition(worker, "DRAINING", True, "DRAIN_REQUESTED", left.reason)
    draft.take_along(others, worker.generation + 1)
    draft.directives.append(RefreshPairing(worker.id))

"""What each command would do to the registry: pure rules from (state, command, now) to events and directives.

Late commands are fenced here and not by timing: a report of a job that has ended, or about an epoch that is over, or
about a worker that is gone, proposes nothing and is marked stale. So a registration that finishes after its worker was
deleted cannot bring it back (smg #1967), whatever the order in which tasks run.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from tandem_router.core.commands import (
    Activate,
    BeginStep,
    CancelJob,
    CloseClient,
    Command,
    Connect,
    CreateWorker,
    DeleteWorker,
    Directive,
    EndJob,
    EndStep,
    Expire,
    MarkNotReady,
    MarkReady,
    Proposal,
    RecordFacts,
    RefreshPairing,
    SetConditions,
    StartJob,
    StartProbes,
    SubmitJob,
)
from tandem_router.core.events import (
    ConditionChanged,
    DrainRequested,
    Event,
    FactsRead,
    JobCreated,
    JobEnded,
    JobForgotten,
    JobStarted,
    JobStepChanged,
    WorkerConnected,
    WorkerCreated,
    WorkerRemoved,
    WorkerStatusChanged,
)
from tandem_router.core.jobs import TRANSITIONS, JobInput, begun, ended, steps_of
from tandem_router.core.registry import Registry
from tandem_router.core.urls import canonical_url
from tandem_router.errors import Reason, TandemError
from tandem_router.model.failure import Failure
from tandem_router.model.ids import JobId, WorkerId
from tandem_router.model.job import Job, JobState, JobStep, JobType, StepState
from tandem_router.model.spec import ConnectionMode, WorkerSpec
from tandem_router.model.worker import Condition, Worker, WorkerStatus

__all__ = ["propose"]

_QUEUE_FULL_RETRY_S = 1.0
"""Registrations that work take about a second; the hint only has to spread repeats."""

_INPUT_OF_END = {
    JobState.SUCCEEDED: JobInput.SUCCEED,
    JobState.FAILED: JobInput.FAIL,
    JobState.CANCELLED: JobInput.CANCEL,
}


class _Draft:
    """Events being written, with the revisions they will have."""

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

    def step(self, job: Job, index: int, step: JobStep) -> None:
        """Note a step."""
        self.events.append(JobStepChanged(*self.stamp(), job.id, index, step))

    def end(self, job: Job, state: JobState, failure: Failure | None = None) -> None:
        """Note the job's end."""
        self.events.append(JobEnded(*self.stamp(), job.id, state, failure))

    def done(self, worker_id: WorkerId | None = None, job_id: JobId | None = None) -> Proposal:
        return Proposal(tuple(self.events), tuple(self.directives), worker_id, job_id)

    def stale(self, worker_id: WorkerId | None = None, job_id: JobId | None = None) -> Proposal:
        return Proposal((), (), worker_id, job_id, is_stale=True)


def propose(registry: Registry, command: Command, now_s: float) -> Proposal:
    """What the command would do; raises TandemError when it is refused."""
    draft = _Draft(registry, now_s)
    match command:
        case Expire():
            return _expire(draft)
        case CreateWorker():
            return _create(draft, command)
        case DeleteWorker():
            return _delete(draft, command)
        case StartJob():
            return _start(draft, command)
        case BeginStep() | EndStep():
            return _step(draft, command)
        case EndJob():
            return _end(draft, command)
        case Connect() | RecordFacts() | SetConditions():
            return _record(draft, command)
        case Activate():
            return _activate(draft, command)
        case MarkNotReady() | MarkReady():
            return _health(draft, command)


def _expire(draft: _Draft) -> Proposal:
    before_s = draft.now_s - draft.registry.settings.history_ttl_s
    for worker_id in draft.registry.failed_before(before_s):
        draft.events.append(WorkerRemoved(*draft.stamp(), worker_id, "registration failed and its record expired"))
    for job_id in draft.registry.jobs.expired(before_s):
        draft.events.append(JobForgotten(*draft.stamp(), job_id))
    return draft.done()


def _create(draft: _Draft, command: CreateWorker) -> Proposal:
    registry, spec = draft.registry, command.spec
    url = canonical_url(spec.url)
    _check(spec)
    if command.request_id is not None:
        record = registry.created_by(command.request_id)
        if record is not None:
            if (record.spec, record.has_credentials) != (spec, command.has_credentials):
                raise TandemError(
                    Reason.REQUEST_ID_REUSED,
                    f"request_id {command.request_id!r} created worker {record.worker_id} from another spec",
                    field="request_id",
                    metadata={"request_id": command.request_id, "worker_id": record.worker_id},
                )
            if registry.worker(record.worker_id) is None:
                # A late repeat must not bring a deleted worker back.
                raise TandemError(
                    Reason.WORKER_NOT_FOUND,
                    f"worker {record.worker_id}, which this request_id created, is gone",
                    metadata={"worker_id": record.worker_id},
                )
            return draft.done(record.worker_id, record.job_id)
    holder = registry.at_url(url)
    if holder is not None:
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
    limit = registry.settings.max_queued + registry.settings.max_running
    if registry.jobs.open_count >= limit:
        raise TandemError(
            Reason.JOB_QUEUE_FULL,
            f"{registry.jobs.open_count} jobs have not ended; the limit is {limit}",
            metadata={"open_jobs": str(registry.jobs.open_count), "limit": str(limit)},
            retry_after_s=_QUEUE_FULL_RETRY_S,
        )
    draft.events.append(
        WorkerCreated(
            *draft.stamp(), command.worker_id, url, spec, command.has_credentials, command.request_id, command.job_id
        )
    )
    job_type = JobType.REGISTER_WORKER
    draft.events.append(JobCreated(*draft.stamp(), command.job_id, job_type, command.worker_id, steps_of(job_type)))
    draft.directives.append(SubmitJob(command.job_id))
    return draft.done(command.worker_id, command.job_id)


def _check(spec: WorkerSpec) -> None:
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


def _delete(draft: _Draft, command: DeleteWorker) -> Proposal:
    worker = draft.registry.worker(command.worker_id)
    if worker is None:
        raise TandemError(
            Reason.WORKER_NOT_FOUND,
            f"no worker has the id {command.worker_id}",
            field="worker_id",
            metadata={"worker_id": command.worker_id},
        )
    current = draft.registry.jobs.get(worker.current_job) if worker.current_job is not None else None
    if worker.status is WorkerStatus.DRAINING and current is not None and not current.state.is_final:
        if command.force:
            _finish_removal(draft, worker, current, "forced")
            draft.directives.append(CancelJob(current.id))
        return draft.done(worker.id, current.id)
    if current is not None and not current.state.is_final:
        draft.end(current, JobState.CANCELLED)
        draft.directives.append(CancelJob(current.id))
    job_type = JobType.REMOVE_WORKER
    steps = steps_of(job_type)
    draft.events.append(JobCreated(*draft.stamp(), command.job_id, job_type, worker.id, steps))
    if command.force or worker.status in (WorkerStatus.PENDING, WorkerStatus.FAILED):
        # Nothing can run on a worker that never was READY, so there is nothing to wait for.
        draft.events.append(JobStarted(*draft.stamp(), command.job_id))
        removal = Job(command.job_id, job_type, worker.id, JobState.RUNNING, steps, 0, draft.now_s)
        _finish_removal(draft, worker, removal, "forced" if command.force else "nothing to drain")
        return draft.done(worker.id, command.job_id)
    draft.events.append(DrainRequested(*draft.stamp(), worker.id, command.drain_timeout_s))
    draft.condition(worker, "DRAINING", True, "DELETE_REQUESTED", "")
    draft.directives.extend((SubmitJob(command.job_id), RefreshPairing()))
    return draft.done(worker.id, command.job_id)


def _finish_removal(draft: _Draft, worker: Worker, job: Job, detail: str) -> None:
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
    draft.directives.extend((CloseClient(worker.id), RefreshPairing()))


def _start(draft: _Draft, command: StartJob) -> Proposal:
    job = draft.registry.jobs.get(command.job_id)
    if job is None or (job.state, JobInput.START) not in TRANSITIONS:
        return draft.stale(job_id=command.job_id)
    draft.events.append(JobStarted(*draft.stamp(), job.id))
    return draft.done(job.worker_id, job.id)


def _step(draft: _Draft, command: BeginStep | EndStep) -> Proposal:
    job = draft.registry.jobs.get(command.job_id)
    if job is None or job.state is not JobState.RUNNING:
        return draft.stale(job_id=command.job_id)
    index = next(index for index, step in enumerate(job.steps) if step.name == command.step)
    if isinstance(command, BeginStep):
        changed = begun(job.steps[index], draft.now_s, command.detail)
    else:
        changed = ended(job.steps[index], draft.now_s, command.state, command.detail, command.failure)
    draft.step(job, index, changed)
    return draft.done(job.worker_id, job.id)


def _end(draft: _Draft, command: EndJob) -> Proposal:
    job = draft.registry.jobs.get(command.job_id)
    if job is None or (job.state, _INPUT_OF_END[command.state]) not in TRANSITIONS:
        return draft.stale(job_id=command.job_id)
    worker = draft.registry.worker(job.worker_id)
    if job.type is JobType.REMOVE_WORKER and worker is not None and command.state is JobState.SUCCEEDED:
        _finish_removal(draft, worker, job, "")
        return draft.done(worker.id, job.id)
    draft.end(job, command.state, command.failure)
    if job.type is JobType.REGISTER_WORKER and worker is not None and command.state is not JobState.SUCCEEDED:
        draft.status(worker, WorkerStatus.FAILED, command.failure or _cancelled(job))
        draft.directives.append(CloseClient(worker.id))
    return draft.done(job.worker_id, job.id)


def _cancelled(job: Job) -> Failure:
    return Failure(Reason.REQUEST_CANCELLED, f"job {job.id} was cancelled")


def _record(draft: _Draft, command: Connect | RecordFacts | SetConditions) -> Proposal:
    worker = draft.registry.worker(command.worker_id)
    if worker is None or worker.status is WorkerStatus.FAILED:
        return draft.stale(command.worker_id)
    if isinstance(command, Connect):
        job = draft.registry.jobs.get(command.job_id) if command.job_id is not None else None
        is_running = command.job_id is None or (job is not None and job.state is JobState.RUNNING)
        if not is_running or worker.epoch != command.seen_epoch:
            return draft.stale(worker.id)
        draft.events.append(WorkerConnected(*draft.stamp(), worker.id, worker.epoch + 1))
        draft.condition(worker, "CONNECTED", True, "CONNECTED", "")
        return draft.done(worker.id, command.job_id)
    if worker.epoch != command.epoch:
        return draft.stale(worker.id)
    if isinstance(command, RecordFacts):
        draft.events.append(FactsRead(*draft.stamp(), worker.id, command.facts, command.ranks))
        draft.condition(worker, "DISCOVERED", True, "DISCOVERED", "")
    draft.conditions(worker, command.conditions)
    return draft.done(worker.id)


def _activate(draft: _Draft, command: Activate) -> Proposal:
    worker = draft.registry.worker(command.worker_id)
    job = draft.registry.jobs.get(command.job_id)
    if worker is None or job is None or job.state is not JobState.RUNNING or worker.status is not WorkerStatus.PENDING:
        return draft.stale(command.worker_id, command.job_id)
    status = WorkerStatus.READY if command.failure is None else WorkerStatus.NOT_READY
    draft.status(worker, status, command.failure)
    index = len(job.steps) - 1
    detail = f"{status}" if command.failure is None else f"{status}: {command.failure.sentence}"
    draft.step(job, index, ended(job.steps[index], draft.now_s, StepState.SUCCEEDED, detail, None))
    draft.end(job, JobState.SUCCEEDED)
    draft.directives.extend((StartProbes(worker.id), RefreshPairing()))
    return draft.done(worker.id, job.id)


def _health(draft: _Draft, command: MarkNotReady | MarkReady) -> Proposal:
    worker = draft.registry.worker(command.worker_id)
    if worker is None or worker.epoch != command.epoch:
        return draft.stale(command.worker_id)
    if isinstance(command, MarkNotReady):
        if worker.status is not WorkerStatus.READY:
            return draft.stale(worker.id)
        draft.status(worker, WorkerStatus.NOT_READY, command.failure)
        return draft.done(worker.id)
    # A new life of a READY worker is news too: the report that the old one ended may not have been kept.
    may_come_back = worker.status is WorkerStatus.NOT_READY
    if not may_come_back and not (worker.status is WorkerStatus.READY and command.is_new_life):
        return draft.stale(worker.id)
    if command.is_new_life:
        draft.events.append(WorkerConnected(*draft.stamp(), worker.id, worker.epoch + 1))
    draft.events.append(FactsRead(*draft.stamp(), worker.id, command.facts, command.ranks))
    draft.conditions(worker, command.conditions)
    draft.status(worker, WorkerStatus.READY, None)
    draft.directives.append(RefreshPairing())
    return draft.done(worker.id)

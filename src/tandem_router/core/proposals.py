"""What each command would do to the registry: pure rules from (state, command, now) to events and directives.

Late commands are fenced here and not by timing: a report of a job that has ended, or about an epoch that is over, or
about a worker that is gone, proposes nothing and is marked stale. So a registration that finishes after its worker was
deleted cannot bring it back (smg #1967), whatever the order in which tasks run.
"""

from __future__ import annotations

from dataclasses import replace

from tandem_router.core import drains, spec_changes
from tandem_router.core.commands import (
    Activate,
    ActivateSuccessor,
    BeginStep,
    CloseClient,
    Command,
    Connect,
    CreateWorker,
    DeleteWorker,
    DrainWorker,
    EndJob,
    EndStep,
    Expire,
    MarkNotReady,
    MarkReady,
    NoteStep,
    Proposal,
    RecordFacts,
    RefreshPairing,
    ReplaceWorker,
    RequestCancel,
    SetAdapters,
    SetConditions,
    SetRankHealth,
    StartJob,
    StartProbes,
    UndrainWorker,
    UpdateWorker,
)
from tandem_router.core.draft import Draft, check_spec, check_url_free
from tandem_router.core.events import (
    AdaptersRead,
    DrainCompleted,
    FactsRead,
    JobForgotten,
    JobStarted,
    WorkerConnected,
    WorkerCreated,
    WorkerRemoved,
)
from tandem_router.core.jobs import TRANSITIONS, JobInput, begun, ended, noted
from tandem_router.core.rank_health import TRIAL_AFTER_S
from tandem_router.core.registry import Registry
from tandem_router.core.urls import canonical_url
from tandem_router.errors import Reason, TandemError
from tandem_router.model.job import JobState, JobType, StepState
from tandem_router.model.worker import Outage, Rank, Worker, WorkerStatus

__all__ = ["propose"]

_UNREACHED = frozenset({Reason.WORKER_UNREACHABLE, Reason.WORKER_LOST, Reason.WORKER_TLS_FAILED})
"""Failures that say that no connection stands."""

_INPUT_OF_END = {
    JobState.SUCCEEDED: JobInput.SUCCEED,
    JobState.FAILED: JobInput.FAIL,
    JobState.CANCELLED: JobInput.CANCEL,
}


def propose(registry: Registry, command: Command, now_s: float) -> Proposal:
    """What the command would do; raises TandemError when it is refused."""
    draft = Draft(registry, now_s)
    match command:
        case Expire():
            return _expire(draft)
        case CreateWorker():
            return _create(draft, command)
        case ReplaceWorker():
            return spec_changes.replace_spec(draft, command)
        case UpdateWorker():
            return spec_changes.update_spec(draft, command)
        case DrainWorker():
            return drains.drain(draft, command)
        case UndrainWorker():
            return drains.undrain(draft, command)
        case DeleteWorker():
            return drains.delete(draft, command)
        case RequestCancel():
            return drains.cancel(draft, command)
        case StartJob():
            return _start(draft, command)
        case BeginStep() | NoteStep() | EndStep():
            return _step(draft, command)
        case EndJob():
            return _end(draft, command)
        case SetRankHealth():
            return _rank_health(draft, command)
        case Connect() | RecordFacts() | SetConditions() | SetAdapters():
            return _record(draft, command)
        case Activate():
            return _activate(draft, command)
        case ActivateSuccessor():
            return spec_changes.activate_successor(draft, command)
        case MarkNotReady() | MarkReady():
            return _health(draft, command)


def _expire(draft: Draft) -> Proposal:
    before_s = draft.now_s - draft.registry.settings.history_ttl_s
    for worker_id in draft.registry.failed_before(before_s):
        for job in draft.registry.jobs.open_of(worker_id):
            draft.supersede(job, f"worker {worker_id} has expired")
        draft.events.append(WorkerRemoved(*draft.stamp(), worker_id, "registration failed and its record expired"))
        draft.directives.append(CloseClient(worker_id))
    for job_id in draft.registry.jobs.expired(before_s):
        draft.events.append(JobForgotten(*draft.stamp(), job_id))
    return draft.done()


def _create(draft: Draft, command: CreateWorker) -> Proposal:
    registry, spec = draft.registry, command.spec
    url = canonical_url(spec.url)
    check_spec(spec)
    if command.request_id is not None:
        record = registry.created_by(command.request_id, draft.now_s)
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
    check_url_free(registry, url)
    draft.check_queue()
    draft.events.append(
        WorkerCreated(
            *draft.stamp(), command.worker_id, url, spec, command.has_credentials, command.request_id, command.job_id
        )
    )
    draft.submit(command.job_id, JobType.REGISTER_WORKER, command.worker_id, 1)
    return draft.done(command.worker_id, command.job_id)


def _start(draft: Draft, command: StartJob) -> Proposal:
    job = draft.registry.jobs.get(command.job_id)
    if job is None or (job.state, JobInput.START) not in TRANSITIONS:
        return draft.stale(job_id=command.job_id)
    draft.events.append(JobStarted(*draft.stamp(), job.id))
    return draft.done(job.worker_id, job.id)


def _step(draft: Draft, command: BeginStep | NoteStep | EndStep) -> Proposal:
    job = draft.registry.jobs.get(command.job_id)
    if job is None or job.state is not JobState.RUNNING or job.cancel is not None:
        return draft.stale(job_id=command.job_id)
    index = next(index for index, step in enumerate(job.steps) if step.name == command.step)
    step, next_try_at_s = job.steps[index], None
    if isinstance(command, BeginStep):
        changed = begun(step, draft.now_s, command.detail)
    elif isinstance(command, NoteStep):
        changed = noted(step, command.detail)
    else:
        changed = ended(step, draft.now_s, command.state, command.detail, command.failure)
        if command.retry_in_s is not None:
            next_try_at_s = draft.now_s + command.retry_in_s
    if changed != step or next_try_at_s != job.next_try_at_s:
        draft.step(job, index, changed, next_try_at_s)
    return draft.done(job.worker_id, job.id)


def _end(draft: Draft, command: EndJob) -> Proposal:
    job = draft.registry.jobs.get(command.job_id)
    if job is None or (job.state, _INPUT_OF_END[command.state]) not in TRANSITIONS:
        return draft.stale(job_id=command.job_id)
    worker = draft.registry.worker(job.worker_id)
    state, failure = command.state, command.failure
    if job.cancel is not None and state is not JobState.SUCCEEDED:
        # Whatever it stumbled over on its way out, it ends because somebody asked for it.
        state, failure = JobState.CANCELLED, job.cancel
    if worker is not None and state is JobState.SUCCEEDED and job.type is JobType.REMOVE_WORKER:
        drains.finish_removal(draft, worker, job, "")
    elif job.type.registers:
        drains.end_registration(draft, job, state, failure)
    else:
        if worker is not None and state is JobState.SUCCEEDED and worker.drain is not None:
            draft.events.append(DrainCompleted(*draft.stamp(), worker.id))
        draft.end(job, state, failure)
    return draft.done(job.worker_id, job.id)


def _record(draft: Draft, command: Connect | RecordFacts | SetConditions | SetAdapters) -> Proposal:
    worker = draft.registry.worker(command.worker_id)
    if worker is None or worker.status is WorkerStatus.FAILED:
        return draft.stale(command.worker_id)
    if isinstance(command, Connect):
        job = draft.registry.jobs.get(command.job_id)
        is_running = job is not None and job.state is JobState.RUNNING and job.cancel is None
        if not is_running or worker.epoch != command.seen_epoch:
            return draft.stale(worker.id)
        draft.events.append(WorkerConnected(*draft.stamp(), worker.id, worker.epoch + 1))
        draft.condition(worker, "CONNECTED", True, "CONNECTED", "")
        return draft.done(worker.id, command.job_id)
    if worker.epoch != command.epoch:
        return draft.stale(worker.id)
    if isinstance(command, SetAdapters):
        if worker.facts is None:
            return draft.stale(worker.id)
        if worker.facts.adapters != command.adapters:
            draft.events.append(AdaptersRead(*draft.stamp(), worker.id, command.adapters))
        return draft.done(worker.id)
    if isinstance(command, RecordFacts):
        draft.events.append(FactsRead(*draft.stamp(), worker.id, command.facts, command.ranks))
        draft.condition(worker, "DISCOVERED", True, "DISCOVERED", "")
    draft.conditions(worker, command.conditions)
    return draft.done(worker.id)


def _rank_health(draft: Draft, command: SetRankHealth) -> Proposal:
    worker = draft.registry.worker(command.worker_id)
    if worker is None or worker.facts is None or worker.epoch != command.epoch:
        return draft.stale(command.worker_id)
    outage = None
    if command.failure is not None:
        outage = Outage(command.failure, draft.now_s, draft.now_s + TRIAL_AFTER_S)
    ranks = tuple(replace(rank, outage=outage) if rank.dp_rank == command.dp_rank else rank for rank in worker.ranks)
    if not any(rank.is_healthy for rank in ranks):
        return draft.stale(worker.id)
    if ranks != worker.ranks:
        draft.events.append(FactsRead(*draft.stamp(), worker.id, worker.facts, ranks))
    return draft.done(worker.id)


def _still_out(worker: Worker, ranks: tuple[Rank, ...]) -> tuple[Rank, ...]:
    """Ranks read again in the same life: what the engine says of itself clears none that its legs have taken out."""
    outages = {rank.dp_rank: rank.outage for rank in worker.ranks}
    return tuple(replace(rank, outage=outages.get(rank.dp_rank)) for rank in ranks)


def _activate(draft: Draft, command: Activate) -> Proposal:
    worker = draft.registry.worker(command.worker_id)
    job = draft.registry.jobs.get(command.job_id)
    if worker is None or job is None or job.state is not JobState.RUNNING or job.cancel is not None:
        return draft.stale(command.worker_id, command.job_id)
    is_pending = draft.registry.standing_of(worker.id) is WorkerStatus.PENDING
    if not is_pending or job.worker_generation != worker.generation:
        return draft.stale(command.worker_id, command.job_id)
    status = WorkerStatus.READY if command.failure is None else WorkerStatus.NOT_READY
    draft.status(worker, status, command.failure)
    index = len(job.steps) - 1
    detail = f"{status}" if command.failure is None else f"{status}: {command.failure.sentence}"
    draft.step(job, index, ended(job.steps[index], draft.now_s, StepState.SUCCEEDED, detail, None))
    draft.end(job, JobState.SUCCEEDED)
    draft.directives.extend((StartProbes(worker.id), RefreshPairing(worker.id)))
    return draft.done(worker.id, job.id)


def _health(draft: Draft, command: MarkNotReady | MarkReady) -> Proposal:
    worker = draft.registry.worker(command.worker_id)
    if worker is None or worker.epoch != command.epoch:
        return draft.stale(command.worker_id)
    standing = draft.registry.standing_of(worker.id)
    if isinstance(command, MarkNotReady):
        # That it is down for another reason by now (it is back, and refuses our key) is what an operator must see.
        is_news = standing is WorkerStatus.NOT_READY and worker.failure != command.failure
        if standing is not WorkerStatus.READY and not is_news:
            return draft.stale(worker.id)
        draft.status(worker, WorkerStatus.NOT_READY, command.failure)
        if command.failure.reason in _UNREACHED:
            draft.condition(worker, "CONNECTED", False, command.failure.reason, command.failure.sentence)
        else:
            draft.condition(worker, "CONNECTED", True, "CONNECTED", "")
        return draft.done(worker.id)
    # A new life of a READY worker is news too: the report that the old one ended may not have been kept.
    may_come_back = standing is WorkerStatus.NOT_READY
    if not may_come_back and not (standing is WorkerStatus.READY and command.is_new_life):
        return draft.stale(worker.id)
    if command.is_new_life:
        draft.events.append(WorkerConnected(*draft.stamp(), worker.id, worker.epoch + 1))
    ranks = command.ranks if command.is_new_life else _still_out(worker, command.ranks)
    draft.events.append(FactsRead(*draft.stamp(), worker.id, command.facts, ranks))
    draft.conditions(worker, command.conditions)
    draft.status(worker, WorkerStatus.READY, None)
    draft.directives.append(RefreshPairing(worker.id))
    return draft.done(worker.id)

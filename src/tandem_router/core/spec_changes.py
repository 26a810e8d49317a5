"""Changing what a worker is to be: rules like those of core.proposals.

A worker that serves goes on under its old spec until a job has tried the new one and puts it in force, all at once; a
worker that does not serve yet takes the new one on directly. A job whose spec is no longer the wanted one can activate
nothing, so a late Replace neither brings back a deleted worker nor an older spec (smg #1967).
"""

from __future__ import annotations

from dataclasses import replace

from tandem_router.core.commands import (
    ActivateSuccessor,
    Proposal,
    RefreshPairing,
    ReplaceWorker,
    StartProbes,
    UpdateWorker,
)
from tandem_router.core.draft import Draft, check_spec, check_url_free, known_worker
from tandem_router.core.events import SpecChanged, Wanted, WorkerReplaced, WorkerStatusChanged
from tandem_router.core.jobs import ended
from tandem_router.core.urls import canonical_url
from tandem_router.errors import Reason, TandemError
from tandem_router.model.ids import JobId
from tandem_router.model.job import JobState, JobType, StepState
from tandem_router.model.spec import WorkerSpec
from tandem_router.model.worker import Condition, Worker, WorkerStatus

__all__ = ["IMMEDIATE", "activate_successor", "needs_registration", "replace_spec", "update_spec"]

IMMEDIATE = frozenset(
    {"labels", "priority", "cost", "health", "resilience", "overload", "load_monitor_interval_s"},
)
"""Fields of a spec that nothing has to be dialled for: they act at once."""

_UNREGISTERED = (WorkerStatus.PENDING, WorkerStatus.FAILED)


def replace_spec(draft: Draft, command: ReplaceWorker) -> Proposal:
    """Register the worker anew under another spec, whatever differs."""
    worker = known_worker(draft.registry, command.worker_id, command.expected_generation, may_be_leaving=False)
    url = canonical_url(command.spec.url)
    if url != worker.url:
        raise TandemError(
            Reason.INVALID_REQUEST,
            f"worker {worker.id} is at {worker.url} and cannot move to {url}; delete it and create another",
            field="spec.url",
            metadata={"worker_id": worker.id, "url": worker.url},
        )
    check_spec(command.spec)
    has_credentials = worker.has_credentials if command.has_credentials is None else command.has_credentials
    wanted = Wanted(command.spec, has_credentials, command.job_id)
    return _register_anew(draft, worker, worker.spec, wanted, JobType.REPLACE_WORKER)


def update_spec(draft: Draft, command: UpdateWorker) -> Proposal:
    """Lay a patch over the wanted spec; what nothing has to be dialled for acts at once."""
    registry = draft.registry
    worker = known_worker(registry, command.worker_id, command.expected_generation, may_be_leaving=False)
    wanted = registry.wanted_of(worker.id)
    before = worker.spec if wanted is None else wanted.spec
    after = command.patch.apply(before)
    check_spec(after)
    present = command.patch.only(IMMEDIATE).apply(worker.spec)
    registering = next((job.id for job in registry.jobs.open_of(worker.id) if job.type.registers), None)
    if command.has_credentials is not None or needs_registration(before, after):
        kept = worker.has_credentials if wanted is None else wanted.has_credentials
        has_credentials = kept if command.has_credentials is None else command.has_credentials
        anew = Wanted(after, has_credentials, command.job_id)
        return _register_anew(draft, worker, present, anew, JobType.UPDATE_WORKER)
    if after == before and present == worker.spec:
        return draft.done(worker.id, None if wanted is None else wanted.job_id)
    later = None if wanted is None else replace(wanted, spec=after)
    draft.events.append(SpecChanged(*draft.stamp(), worker.id, present, worker.has_credentials, later))
    draft.take_along(registry.jobs.open_of(worker.id), worker.generation + 1)
    return draft.done(worker.id, None if wanted is None else registering)


def needs_registration(before: WorkerSpec, after: WorkerSpec) -> bool:
    """Whether going from one spec to the other means dialling the worker again."""
    same = {name: getattr(before, name) for name in IMMEDIATE}
    return replace(after, **same) != before


def _register_anew(draft: Draft, worker: Worker, present: WorkerSpec, wanted: Wanted, job_type: JobType) -> Proposal:
    registry = draft.registry
    standing = registry.standing_of(worker.id)
    open_jobs = registry.jobs.open_of(worker.id)
    pointless = [job for job in open_jobs if job.type.registers]
    draft.check_queue(freed=len(pointless))
    if standing is WorkerStatus.FAILED:
        check_url_free(registry, worker.url)
    for job in pointless:
        draft.supersede(job, f"another spec of worker {worker.id} is wanted since")
    job_id: JobId = wanted.job_id
    generation = worker.generation + 1
    if standing in _UNREGISTERED:
        event = SpecChanged(*draft.stamp(), worker.id, wanted.spec, wanted.has_credentials, None)
    else:
        event = SpecChanged(*draft.stamp(), worker.id, present, worker.has_credentials, wanted)
    draft.events.append(event)
    if standing is WorkerStatus.FAILED:
        draft.events.append(WorkerStatusChanged(*draft.stamp(), worker.id, WorkerStatus.PENDING))
    draft.take_along([job for job in open_jobs if job not in pointless], generation)
    draft.submit(job_id, job_type, worker.id, generation)
    return draft.done(worker.id, job_id)


def activate_successor(draft: Draft, command: ActivateSuccessor) -> Proposal:
    """Put the wanted spec in force; stale unless it still is the one wanted and nothing else began meanwhile."""
    worker = draft.registry.worker(command.worker_id)
    job = draft.registry.jobs.get(command.job_id)
    if worker is None or job is None or job.state is not JobState.RUNNING or job.cancel is not None:
        return draft.stale(command.worker_id, command.job_id)
    wanted = draft.registry.wanted_of(worker.id)
    is_wanted = wanted is not None and wanted.job_id == job.id and job.worker_generation == worker.generation
    if wanted is None or not is_wanted or worker.epoch != command.seen_epoch:
        return draft.stale(worker.id, job.id)
    failure = command.failure
    claims = [
        Condition("CONNECTED", True, "CONNECTED", "", draft.now_s),
        Condition("DISCOVERED", True, "DISCOVERED", "", draft.now_s),
        Condition("SERVING", True, "SERVING", "", draft.now_s)
        if failure is None
        else Condition("SERVING", False, failure.reason, failure.sentence, draft.now_s),
    ]
    draft.events.append(
        WorkerReplaced(
            *draft.stamp(),
            worker.id,
            worker.epoch + 1,
            wanted.spec,
            wanted.has_credentials,
            command.facts,
            command.ranks,
            (*claims, *command.conditions),
            failure,
        )
    )
    index = len(job.steps) - 1
    detail = f"in effect as epoch {worker.epoch + 1}" + ("" if failure is None else f", NOT_READY: {failure.sentence}")
    draft.step(job, index, ended(job.steps[index], draft.now_s, StepState.SUCCEEDED, detail, None))
    draft.end(job, JobState.SUCCEEDED)
    draft.directives.extend((StartProbes(worker.id), RefreshPairing(worker.id)))
    return draft.done(worker.id, job.id)

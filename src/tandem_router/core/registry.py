"""The registry: every worker by id, every reserved URL, every job. Changed by events only.

Invariants, held by tests/core/test_registry_machine.py: url -> id and id -> worker are inverse for every worker that
is not FAILED (I1); revisions are contiguous store-wide and rise per id (I3); of any number of creates of one URL
exactly one succeeds (I7); an id never comes back. `core.proposals.propose` decides and changes nothing; `apply` changes
and decides nothing; in between, the shell makes the events durable.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from tandem_router.core.events import (
    AdaptersRead,
    ConditionChanged,
    DrainCompleted,
    DrainLifted,
    DrainRequested,
    Event,
    FactsRead,
    JobAdjusted,
    JobCancelRequested,
    JobCreated,
    JobEnded,
    JobForgotten,
    JobStarted,
    JobStepChanged,
    SpecChanged,
    Wanted,
    WorkerConnected,
    WorkerCreated,
    WorkerRemoved,
    WorkerReplaced,
    WorkerStatusChanged,
)
from tandem_router.core.jobs import JobBook, JobEvent
from tandem_router.model.failure import Failure
from tandem_router.model.ids import JobId, WorkerId
from tandem_router.model.job import JobState
from tandem_router.model.settings import JobSettings
from tandem_router.model.spec import WorkerSpec
from tandem_router.model.worker import Condition, Worker, WorkerStatus

__all__ = ["MAX_REQUEST_IDS", "REQUEST_ID_TTL_S", "CreateRecord", "Registry", "RegistryStatistics"]

MAX_REQUEST_IDS = 10_000
"""Creates whose request_id is remembered at most; the oldest is forgotten first. It bounds memory to about 10 MB."""

REQUEST_ID_TTL_S = 24 * 3600.0
"""How long a create's request_id makes a repeat idempotent (CreateWorkerRequest.request_id)."""


@dataclass(frozen=True, slots=True)
class CreateRecord:
    """What a request_id was used for."""

    spec: WorkerSpec
    has_credentials: bool
    worker_id: WorkerId
    job_id: JobId
    at_s: float


@dataclass(frozen=True, slots=True)
class _Standing:
    """What a worker's status would be without a wish to drain: PENDING, READY, NOT_READY or FAILED."""

    status: WorkerStatus
    failure: Failure | None


@dataclass(frozen=True, slots=True)
class RegistryStatistics:
    """A frozen reading for admin rpcs, metrics and assertions."""

    revision: int
    workers_by_status: Mapping[WorkerStatus, int]
    reserved_urls: int
    jobs: int
    open_jobs: int
    request_ids: int
    workers_created_total: int
    workers_removed_total: int


class Registry:
    """Workers, URLs and jobs. Not thread-safe: one event loop owns it."""

    def __init__(self, settings: JobSettings | None = None, *, revision: int = 0) -> None:
        """revision: before the first event."""
        self.settings = settings or JobSettings()
        self.jobs = JobBook()
        self._workers: dict[WorkerId, Worker] = {}
        self._by_url: dict[str, WorkerId] = {}
        self._failed: dict[WorkerId, float] = {}
        self._requests: dict[str, CreateRecord] = {}
        self._standings: dict[WorkerId, _Standing] = {}
        self._wanted: dict[WorkerId, Wanted] = {}
        self._last_failed: dict[WorkerId, JobId] = {}
        self._snapshot: Mapping[WorkerId, Worker] | None = None
        self._revision = revision
        self._created = 0
        self._removed = 0

    @property
    def revision(self) -> int:
        """Of the last event applied; 0 before the first."""
        return self._revision

    def worker(self, worker_id: WorkerId) -> Worker | None:
        """The worker, or None: never registered, or gone."""
        return self._workers.get(worker_id)

    def at_url(self, url: str) -> Worker | None:
        """The worker that holds a canonical URL; a FAILED one holds none."""
        worker_id = self._by_url.get(url)
        return None if worker_id is None else self._workers[worker_id]

    def created_by(self, request_id: str, now_s: float) -> CreateRecord | None:
        """What this request_id was used for, as long as it is remembered."""
        record = self._requests.get(request_id)
        return None if record is None or now_s - record.at_s > REQUEST_ID_TTL_S else record

    def standing_of(self, worker_id: WorkerId) -> WorkerStatus:
        """A worker's status without regard to a wish to drain: PENDING, READY, NOT_READY or FAILED."""
        return self._standings[worker_id].status

    def wanted_of(self, worker_id: WorkerId) -> Wanted | None:
        """The spec that a job is to bring into effect; None when the one in effect is the one wanted."""
        return self._wanted.get(worker_id)

    def workers(self) -> Mapping[WorkerId, Worker]:
        """An immutable snapshot, oldest first; the same object until something changes."""
        if self._snapshot is None:
            self._snapshot = MappingProxyType(dict(self._workers))
        return self._snapshot

    def next_deadline_s(self) -> float | None:
        """The wall time at which the next record expires (send `Expire` then), or None."""
        ends = [end for end in (self.jobs.first_end_s(), next(iter(self._failed.values()), None)) if end is not None]
        return min(ends) + self.settings.history_ttl_s if ends else None

    def failed_before(self, before_s: float) -> tuple[WorkerId, ...]:
        """Workers whose registration failed at or before `before_s`."""
        return tuple(worker_id for worker_id, at_s in self._failed.items() if at_s <= before_s)

    def statistics(self) -> RegistryStatistics:
        """Counts of now."""
        by_status: dict[WorkerStatus, int] = {}
        for worker in self._workers.values():
            by_status[worker.status] = by_status.get(worker.status, 0) + 1
        return RegistryStatistics(
            revision=self._revision,
            workers_by_status=by_status,
            reserved_urls=len(self._by_url),
            jobs=len(self.jobs.all()),
            open_jobs=self.jobs.open_count,
            request_ids=len(self._requests),
            workers_created_total=self._created,
            workers_removed_total=self._removed,
        )

    def __repr__(self) -> str:
        return f"<Registry revision {self._revision}: {len(self._workers)} workers, {self.jobs.open_count} open jobs>"

    def apply(self, events: Iterable[Event]) -> None:
        """Take events in, in order. Raises ValueError on a gap or repeat of revisions: a fault of ours."""
        for event in events:
            if event.revision != self._revision + 1:
                raise ValueError(f"event revision {event.revision} does not follow {self._revision}")
            self._apply(event)
            self._revision = event.revision
        self._snapshot = None

    def _apply(self, event: Event) -> None:
        match event:
            case (
                JobCreated()
                | JobStarted()
                | JobStepChanged()
                | JobAdjusted()
                | JobCancelRequested()
                | JobEnded()
                | JobForgotten()
            ):
                self._apply_job(event)
            case WorkerCreated():
                self._create(event)
            case WorkerRemoved():
                self._remove(event)
            case WorkerConnected():
                self._change(event.worker_id, event, epoch=event.epoch)
            case FactsRead():
                self._change(event.worker_id, event, facts=event.facts, ranks=event.ranks)
            case AdaptersRead():
                if (facts := self._workers[event.worker_id].facts) is not None:
                    self._change(event.worker_id, event, facts=replace(facts, adapters=event.adapters))
            case WorkerStatusChanged():
                self._stand(event)
            case SpecChanged():
                self._change_spec(event)
            case WorkerReplaced():
                self._replace(event)
            case ConditionChanged():
                worker = self._workers[event.worker_id]
                claim = Condition(event.type, event.is_true, event.reason, event.message, event.at_s)
                self._change(worker.id, event, conditions=_merged(worker.conditions, (claim,)))
            case DrainRequested() | DrainLifted() | DrainCompleted():
                self._apply_drain(event)

    def _create(self, event: WorkerCreated) -> None:
        self._standings[event.worker_id] = _Standing(WorkerStatus.PENDING, None)
        self._workers[event.worker_id] = Worker(
            id=event.worker_id,
            spec=event.spec,
            url=event.url,
            status=WorkerStatus.PENDING,
            revision=event.revision,
            generation=1,
            epoch=0,
            created_at_s=event.at_s,
            updated_at_s=event.at_s,
            has_credentials=event.has_credentials,
        )
        self._by_url[event.url] = event.worker_id
        self._created += 1
        if event.request_id is not None:
            self._requests.pop(event.request_id, None)  # one whose time is over makes room at the end of the line
            self._requests[event.request_id] = CreateRecord(
                event.spec, event.has_credentials, event.worker_id, event.job_id, event.at_s
            )
            if len(self._requests) > MAX_REQUEST_IDS:
                del self._requests[next(iter(self._requests))]

    def _remove(self, event: WorkerRemoved) -> None:
        worker = self._workers.pop(event.worker_id)
        self._release_url(worker)
        del self._standings[worker.id]
        for table in (self._failed, self._wanted, self._last_failed):
            table.pop(worker.id, None)
        self._removed += 1

    def _stand(self, event: WorkerStatusChanged) -> None:
        worker = self._workers[event.worker_id]
        self._standings[worker.id] = _Standing(event.status, event.failure)
        if event.status is WorkerStatus.FAILED:
            self._release_url(worker)
            self._failed[worker.id] = event.at_s
        else:
            self._by_url[worker.url] = worker.id
            self._failed.pop(worker.id, None)
        self._change(worker.id, event)

    def _change_spec(self, event: SpecChanged) -> None:
        worker = self._workers[event.worker_id]
        if event.wanted is None:
            self._wanted.pop(worker.id, None)
        else:
            self._wanted[worker.id] = event.wanted
        self._change(
            worker.id,
            event,
            spec=event.spec,
            has_credentials=event.has_credentials,
            generation=worker.generation + 1,
        )

    def _replace(self, event: WorkerReplaced) -> None:
        worker = self._workers[event.worker_id]
        self._wanted.pop(worker.id, None)
        status = WorkerStatus.READY if event.failure is None else WorkerStatus.NOT_READY
        self._standings[worker.id] = _Standing(status, event.failure)
        # What was claimed under the old spec is no longer known; that the worker drains is.
        kept = tuple(claim for claim in worker.conditions if claim.type == "DRAINING")
        known = {claim.type: claim for claim in worker.conditions}
        stamped = tuple(_since(known.get(claim.type), claim, event.at_s) for claim in event.conditions)
        self._change(
            worker.id,
            event,
            spec=event.spec,
            has_credentials=event.has_credentials,
            epoch=event.epoch,
            facts=event.facts,
            ranks=event.ranks,
            conditions=(*stamped, *kept),
        )

    def _apply_drain(self, event: DrainRequested | DrainLifted | DrainCompleted) -> None:
        worker = self._workers[event.worker_id]
        if isinstance(event, DrainCompleted):
            if worker.drain is not None:
                self._change(worker.id, event, drain=replace(worker.drain, drained_at_s=event.at_s))
            return
        drain = event.drain if isinstance(event, DrainRequested) else None
        wish = {"removal" if event.is_removal else "drain": drain}
        self._change(worker.id, event, generation=worker.generation + 1, **wish)

    def _apply_job(self, event: JobEvent) -> None:
        """A job's change is a change of its worker, which shows the job that runs, else the last one if it failed."""
        before = self.jobs.get(event.job_id)
        self.jobs.apply(event)
        job = self.jobs.get(event.job_id) or before
        if job is None:
            raise KeyError(event.job_id)
        worker = self._workers.get(job.worker_id)
        if worker is None:
            return
        if isinstance(event, JobForgotten):
            if self._last_failed.get(worker.id) == job.id:
                del self._last_failed[worker.id]
            if worker.current_job != job.id:
                return
        elif isinstance(event, JobEnded):
            if event.state is JobState.FAILED:
                self._last_failed[worker.id] = job.id
            elif event.state is JobState.SUCCEEDED:
                self._last_failed.pop(worker.id, None)
            wanted = self._wanted.get(worker.id)
            if wanted is not None and wanted.job_id == job.id:
                del self._wanted[worker.id]
        open_jobs = self.jobs.open_of(worker.id)
        current = open_jobs[0].id if open_jobs else self._last_failed.get(worker.id)
        self._change(worker.id, event, current_job=current)

    def _change(self, worker_id: WorkerId, event: Event, **fields: object) -> Worker:
        worker = replace(
            self._workers[worker_id],
            revision=event.revision,
            updated_at_s=event.at_s,
            **fields,  # type: ignore[arg-type]  # names and types are those of Worker; replace checks the names
        )
        worker = _shown(worker, self._standings[worker_id])
        self._workers[worker_id] = worker
        return worker

    def _release_url(self, worker: Worker) -> None:
        if self._by_url.get(worker.url) == worker.id:
            del self._by_url[worker.url]


def _shown(worker: Worker, standing: _Standing) -> Worker:
    """The worker with the status that follows from its standing and from what is wished of it."""
    could_serve = standing.status in (WorkerStatus.READY, WorkerStatus.NOT_READY)
    status = WorkerStatus.DRAINING if could_serve and worker.leaving is not None else standing.status
    failure = standing.failure if status in (WorkerStatus.NOT_READY, WorkerStatus.FAILED) else None
    return replace(worker, status=status, failure=failure)


def _merged(claims: tuple[Condition, ...], news: tuple[Condition, ...]) -> tuple[Condition, ...]:
    table = {claim.type: claim for claim in claims}
    for new in news:
        table[new.type] = _since(table.get(new.type), new, new.changed_at_s)
    return tuple(table.values())


def _since(old: Condition | None, new: Condition, at_s: float) -> Condition:
    """The claim with the time at which its truth last changed."""
    is_same = old is not None and old.is_true == new.is_true
    return replace(new, changed_at_s=old.changed_at_s if old is not None and is_same else at_s)

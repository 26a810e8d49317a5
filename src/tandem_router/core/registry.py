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
from tandem_router.core.jobs import JobBook
from tandem_router.model.ids import JobId, WorkerId
from tandem_router.model.job import Job, JobState
from tandem_router.model.settings import JobSettings
from tandem_router.model.spec import WorkerSpec
from tandem_router.model.worker import Condition, Worker, WorkerStatus

__all__ = ["MAX_REQUEST_IDS", "CreateRecord", "Registry", "RegistryStatistics"]

MAX_REQUEST_IDS = 10_000
"""Creates whose request_id is remembered; the oldest is forgotten first. A repeat comes within seconds, so this bounds
memory (about 10 MB) and not what callers can rely on."""


@dataclass(frozen=True, slots=True)
class CreateRecord:
    """What a request_id was used for."""

    spec: WorkerSpec
    has_credentials: bool
    worker_id: WorkerId
    job_id: JobId


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

    def __init__(self, settings: JobSettings | None = None) -> None:
        self.settings = settings or JobSettings()
        self.jobs = JobBook()
        self._workers: dict[WorkerId, Worker] = {}
        self._by_url: dict[str, WorkerId] = {}
        self._failed: dict[WorkerId, float] = {}
        self._requests: dict[str, CreateRecord] = {}
        self._drains: dict[WorkerId, DrainRequested] = {}
        self._snapshot: Mapping[WorkerId, Worker] | None = None
        self._revision = 0
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

    def created_by(self, request_id: str) -> CreateRecord | None:
        """What this request_id was used for, as long as it is remembered."""
        return self._requests.get(request_id)

    def drain_of(self, worker_id: WorkerId) -> DrainRequested | None:
        """The wish to drain a worker, or None when there is none."""
        return self._drains.get(worker_id)

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
            case JobCreated() | JobStarted() | JobStepChanged() | JobEnded():
                self.jobs.apply(event)
                self._touch_for_job(event)
            case JobForgotten():
                self.jobs.apply(event)
            case WorkerCreated():
                self._create(event)
            case WorkerRemoved():
                worker = self._workers.pop(event.worker_id)
                self._release_url(worker)
                self._failed.pop(event.worker_id, None)
                self._drains.pop(event.worker_id, None)
                self._removed += 1
            case WorkerConnected():
                self._change(event.worker_id, event, epoch=event.epoch)
            case FactsRead():
                self._change(event.worker_id, event, facts=event.facts, ranks=event.ranks)
            case WorkerStatusChanged():
                worker = self._change(event.worker_id, event, status=event.status, failure=event.failure)
                if event.status is WorkerStatus.FAILED:
                    self._release_url(worker)
                    self._failed[worker.id] = event.at_s
            case ConditionChanged():
                self._change_condition(event)
            case DrainRequested():
                worker = self._workers[event.worker_id]
                self._change(worker.id, event, status=WorkerStatus.DRAINING, generation=worker.generation + 1)
                self._drains[worker.id] = event

    def _create(self, event: WorkerCreated) -> None:
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
            self._requests[event.request_id] = CreateRecord(
                event.spec, event.has_credentials, event.worker_id, event.job_id
            )
            if len(self._requests) > MAX_REQUEST_IDS:
                del self._requests[next(iter(self._requests))]

    def _touch_for_job(self, event: JobCreated | JobStarted | JobStepChanged | JobEnded) -> None:
        """A job's change is a change of its worker, which shows the job."""
        job = self._job(event.job_id)
        worker = self._workers.get(job.worker_id)
        if worker is None:
            return
        current = worker.current_job
        if isinstance(event, JobCreated):
            current = job.id
        elif isinstance(event, JobEnded) and current == job.id and event.state is not JobState.FAILED:
            current = None
        self._change(worker.id, event, current_job=current)

    def _change_condition(self, event: ConditionChanged) -> None:
        worker = self._workers[event.worker_id]
        before = {condition.type: condition for condition in worker.conditions}
        old = before.get(event.type)
        since_s = old.changed_at_s if old is not None and old.is_true == event.is_true else event.at_s
        before[event.type] = Condition(event.type, event.is_true, event.reason, event.message, since_s)
        self._change(worker.id, event, conditions=tuple(before.values()))

    def _change(self, worker_id: WorkerId, event: Event, **fields: object) -> Worker:
        worker = replace(
            self._workers[worker_id],
            revision=event.revision,
            updated_at_s=event.at_s,
            **fields,  # type: ignore[arg-type]  # names and types are those of Worker; replace checks the names
        )
        self._workers[worker_id] = worker
        return worker

    def _release_url(self, worker: Worker) -> None:
        if self._by_url.get(worker.url) == worker.id:
            del self._by_url[worker.url]

    def _job(self, job_id: JobId) -> Job:
        job = self.jobs.get(job_id)
        if job is None:
            raise KeyError(job_id)
        return job

"""Workers as watches see them: every event of the registry as the change of one worker, and every state of a job."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tandem_router.core.events import Event
from tandem_router.core.registry import Registry
from tandem_router.core.watch_log import WatchLog
from tandem_router.model.ids import JobId, WorkerId
from tandem_router.model.job import Job
from tandem_router.model.watch import WorkerReading

__all__ = ["WorkerHistory"]


class WorkerHistory:
    """Applies events to the registry, one by one, and writes down what each changed.

    `log.revision` is the registry's. An event that changes nothing that a worker shows still is a revision.
    """

    def __init__(self, registry: Registry, *, capacity: int = 65_536) -> None:
        """registry: changed through `apply` only from now on. capacity: revisions kept for watches to resume from."""
        self._registry = registry
        self.log: WatchLog[WorkerId, WorkerReading] = WatchLog(revision=registry.revision, capacity=capacity)
        self._followers: dict[JobId, list[Callable[[Job], None]]] = {}

    def apply(self, events: Iterable[Event]) -> None:
        """Take events in, in order; raises what Registry.apply raises."""
        for event in events:
            job_id: JobId | None = getattr(event, "job_id", None)
            worker_id = self._worker_of(event, job_id)
            self._registry.apply((event,))
            self._note(worker_id)
            job = None if job_id not in self._followers else self._registry.jobs.get(job_id)
            if job is not None:
                for told in tuple(self._followers[job.id]):
                    told(job)

    def job(self, job_id: JobId) -> Job | None:
        """The job as it is now, or None."""
        return self._registry.jobs.get(job_id)

    def follow(self, job_id: JobId, told: Callable[[Job], None]) -> Callable[[], None]:
        """Call `told` with every state of a job from now on; it must return at once. Returns the way to end."""
        self._followers.setdefault(job_id, []).append(told)

        def end() -> None:
            followers = self._followers[job_id]
            followers.remove(told)
            if not followers:
                del self._followers[job_id]

        return end

    @property
    def followed_jobs(self) -> int:
        """Jobs that somebody follows."""
        return len(self._followers)

    def _worker_of(self, event: Event, job_id: JobId | None) -> WorkerId | None:
        # By name and not by class: every event names its worker, or a job whose record is still there before it.
        worker_id: WorkerId | None = getattr(event, "worker_id", None)
        if worker_id is None and job_id is not None:
            job = self._registry.jobs.get(job_id)
            worker_id = None if job is None else job.worker_id
        return worker_id

    def _note(self, worker_id: WorkerId | None) -> None:
        before = None if worker_id is None else self.log.get(worker_id)
        worker = None if worker_id is None else self._registry.worker(worker_id)
        if worker is not None:
            job = None if worker.current_job is None else self._registry.jobs.get(worker.current_job)
            if before is None or before.worker is not worker or before.job is not job:
                self.log.put(worker.id, WorkerReading(worker, job))
                return
        elif before is not None:
            self.log.remove(before.worker.id)
            return
        self.log.pass_over()

"""Watches: who follows workers, pairs and jobs, what each is told, and when one is too slow.

A watcher has no buffer of its own: it reads the shared log at its own pace, and what it may cost is how far behind it
may be (`max_lag` revisions) plus the one message that it is being sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from tandem_router.core.watch_cursor import WatchCursor
from tandem_router.core.watch_log import WatchLog
from tandem_router.core.watch_pairs import PairTable
from tandem_router.core.watch_workers import WorkerHistory
from tandem_router.errors import Reason, TandemError
from tandem_router.model.failure import Failure
from tandem_router.model.ids import JobId, PairId, WorkerId, canonical_uuid
from tandem_router.model.job import Job
from tandem_router.model.pairing import PairView
from tandem_router.model.settings import WatchSettings
from tandem_router.model.watch import WatchEvent, WatchEventType, WorkerReading
from tandem_router.runtime.scope import TaskScope
from tandem_router.runtime.watch_call import News, WatchCall

__all__ = ["WatchOptions", "WatchStatistics", "Watches"]

KeyT = TypeVar("KeyT", bound=Hashable)
ThingT = TypeVar("ThingT")

Send = Callable[[WatchEvent[ThingT]], Awaitable[None]]
"""Writes one message to the reader; may wait, may raise TandemError."""


@dataclass(frozen=True, slots=True)
class WatchOptions:
    """How to follow."""

    from_revision: int | None = None
    """The reader knows everything up to it; None = begin with a snapshot."""
    stop_after_synced: bool = False
    progress_interval_s: float | None = None
    """PROGRESS after so long without a message; None = never."""


@dataclass(frozen=True, slots=True)
class WatchStatistics:
    """A frozen reading for metrics and assertions."""

    running: int
    slow_total: int
    """Watches that were ended because their reader was too far behind."""


class _Audience(Generic[KeyT, ThingT]):
    """Everybody who follows one log."""

    def __init__(self, log: WatchLog[KeyT, ThingT], scope: TaskScope, max_lag: int) -> None:
        self._log = log
        self._scope = scope
        self._max_lag = max_lag
        # Looking at every reader after every change would cost readers x changes.
        self._step = max(1, max_lag // 16)
        self._look_at = log.revision + self._step
        self._news = News()
        self._cursors: dict[WatchCall, tuple[WatchCursor[KeyT, ThingT], int]] = {}
        self.slow_total = 0
        self._unsubscribe = log.subscribe(self._rang)

    def __len__(self) -> int:
        return len(self._cursors)

    def open(
        self, options: WatchOptions, matches: Callable[[ThingT], bool], send: Send[ThingT], name: str
    ) -> WatchCall:
        cursor = WatchCursor(self._log, matches, options.from_revision)
        call = WatchCall(self._scope, partial(self._tell, cursor, options, send), name, self._ended)
        # One that resumes far back is given the time to come up; it may only not fall further behind.
        self._cursors[call] = (cursor, max(self._max_lag, cursor.backlog + self._step))
        return call

    def end(self, failure: Failure) -> None:
        self._unsubscribe()
        for call in tuple(self._cursors):
            call.end(failure)

    def _ended(self, call: WatchCall) -> None:
        del self._cursors[call]

    def _rang(self) -> None:
        self._news.ring()
        if self._log.revision < self._look_at:
            return
        self._look_at = self._log.revision + self._step
        for call, (cursor, most) in tuple(self._cursors.items()):
            if cursor.backlog + self._step > most:
                self.slow_total += 1
                call.end(Failure.of(cursor.slow()))

    async def _tell(self, cursor: WatchCursor[KeyT, ThingT], options: WatchOptions, send: Send[ThingT]) -> None:
        loop = asyncio.get_running_loop()
        interval_s = options.progress_interval_s
        due_s = None if interval_s is None else loop.time() + interval_s
        while True:
            event = cursor.next()
            if event is None and cursor.has_more:
                await asyncio.sleep(0)  # a long stretch without a match must not hold the loop
                continue
            if event is None and (due_s is None or loop.time() < due_s):
                await self._news.wait(due_s)
                continue
            await send(event or WatchEvent(WatchEventType.PROGRESS, cursor.position))
            if interval_s is not None:
                due_s = loop.time() + interval_s
            if options.stop_after_synced and cursor.is_synced:
                return


class Watches:
    """All running watches of one router. One event loop owns it; `close` it there."""

    def __init__(self, workers: WorkerHistory, pairs: PairTable, settings: WatchSettings | None = None) -> None:
        settings = settings or WatchSettings()
        self._history = workers
        self._pair_table = pairs
        self._scope = TaskScope("watch")
        self._workers: _Audience[WorkerId, WorkerReading] = _Audience(workers.log, self._scope, settings.max_lag)
        self._pairs: _Audience[PairId, PairView] = _Audience(pairs.log, self._scope, settings.max_lag)
        self._jobs: dict[WatchCall, None] = {}
        self._is_closed = False

    def workers(
        self, options: WatchOptions, matches: Callable[[WorkerReading], bool], send: Send[WorkerReading]
    ) -> WatchCall:
        """Follow the workers that match. Raises TandemError at once: REVISION_COMPACTED, DRAINING.

        The call's result is SLOW_CLIENT when the reader falls behind, and DRAINING when the router shuts down.
        """
        self._check_open()
        return self._workers.open(options, matches, send, "workers")

    def pairs(self, options: WatchOptions, matches: Callable[[PairView], bool], send: Send[PairView]) -> WatchCall:
        """Follow the pairs that match; as `workers`, by the pairs' own revisions."""
        self._check_open()
        return self._pairs.open(options, matches, send, "pairs")

    def pairs_now(self) -> tuple[tuple[PairView, ...], int]:
        """The pairs that have not ended, oldest first, and the revision of this reading."""
        return self._pair_table.log.current(), self._pair_table.log.revision

    def job(self, job_id: str, stop_after_synced: bool, send: Send[Job]) -> WatchCall:
        """Follow one job until its final state. A slow reader misses states in between, never the final one.

        Raises TandemError at once: INVALID_REQUEST for an id that is not a UUID, JOB_NOT_FOUND, DRAINING.
        """
        self._check_open()
        canonical = canonical_uuid(job_id)
        if canonical is None:
            raise TandemError(Reason.INVALID_REQUEST, f"{job_id!r} is not a UUID", field="job_id")
        job = self._history.job(JobId(canonical))
        if job is None:
            raise TandemError(
                Reason.JOB_NOT_FOUND, f"no job has the id {job_id}", field="job_id", metadata={"job_id": canonical}
            )
        tell = partial(self._tell_job, job, stop_after_synced, send)
        call = WatchCall(self._scope, tell, f"job {job.id}", self._job_ended)
        self._jobs[call] = None
        return call

    def statistics(self) -> WatchStatistics:
        """Counts of now."""
        running = len(self._workers) + len(self._pairs) + len(self._jobs)
        return WatchStatistics(running, self._workers.slow_total + self._pairs.slow_total)

    async def close(self) -> None:
        """End every watch with DRAINING and refuse new ones; idempotent."""
        if not self._is_closed:
            self._is_closed = True
            failure = Failure(Reason.DRAINING, "the router is shutting down")
            self._workers.end(failure)
            self._pairs.end(failure)
            for call in tuple(self._jobs):
                call.end(failure)
        await self._scope.close()

    def _check_open(self) -> None:
        if self._is_closed:
            raise TandemError(Reason.DRAINING, "the router is shutting down")

    def _job_ended(self, call: WatchCall) -> None:
        del self._jobs[call]

    async def _tell_job(self, job: Job, stop_after_synced: bool, send: Send[Job]) -> None:
        news, latest = News(), [job]

        def told(state: Job) -> None:
            latest[0] = state
            news.ring()

        kind = WatchEventType.SNAPSHOT
        end = self._history.follow(job.id, told)
        try:
            # A state that came between the call and its task's first step is not lost: it is read here.
            latest[0] = self._history.job(job.id) or job
            while True:
                job = latest[0]
                await send(WatchEvent(kind, job.revision, job))
                if stop_after_synced or job.state.is_final:
                    return
                kind = WatchEventType.UPDATED
                if latest[0] is job:
                    await news.wait()
        finally:
            end()

    def __repr__(self) -> str:
        return f"<Watches {self.statistics()}>"

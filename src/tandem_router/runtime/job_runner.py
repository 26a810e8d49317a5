"""Runs jobs: those of one worker in the order of asking, a bounded number doing something at once.

A job that waits (between attempts, for legs to end) holds no slot: engines that take half an hour to start blocked ten
slots, and with them every registration, in a rival (sglang #19797).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tandem_router.model.ids import JobId, WorkerId
from tandem_router.runtime.scope import TaskScope

__all__ = ["JobRunner", "JobRunnerStatistics"]


@dataclass(frozen=True, slots=True)
class JobRunnerStatistics:
    """A frozen reading for admin rpcs, metrics and assertions."""

    started: int
    """Jobs that have a task, waiting ones included."""
    queued: int
    """Jobs behind another job of their worker."""
    active: int
    """Slots in use."""


class JobRunner:
    """Starts jobs in tasks of its own and ends them."""

    def __init__(self, run: Callable[[JobId], Awaitable[None]], max_running: int) -> None:
        """Args:
        run: carries one job out; must report every failure itself.
        max_running: slots.
        """
        self._run = run
        self._slots = asyncio.Semaphore(max_running)
        self._active = 0
        self._queues: dict[WorkerId, deque[JobId]] = {}
        self._tasks: dict[JobId, asyncio.Task[None]] = {}
        self._scope = TaskScope("job")

    def submit(self, job_id: JobId, worker_id: WorkerId) -> None:
        """Run the job once the worker's earlier jobs have ended. Returns at once."""
        queue = self._queues.setdefault(worker_id, deque())
        queue.append(job_id)
        if len(queue) == 1:
            self._start(job_id, worker_id)

    def cancel(self, job_id: JobId) -> None:
        """Stop the job wherever it is; idempotent. Its record is the caller's affair."""
        task = self._tasks.get(job_id)
        if task is not None:
            task.cancel()
            return
        for queue in self._queues.values():
            if job_id in queue:
                queue.remove(job_id)
                return

    async def in_slot(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do a piece of a job's work while holding a slot; waits for a free one, first come, first served."""
        async with self._slots:
            self._active += 1
            try:
                await work()
            finally:
                self._active -= 1

    async def close(self) -> None:
        """Stop all jobs and wait for their tasks; idempotent."""
        self._queues.clear()
        await self._scope.close()

    def statistics(self) -> JobRunnerStatistics:
        """Counts of now."""
        queued = sum(len(queue) for queue in self._queues.values()) - len(self._tasks)
        return JobRunnerStatistics(len(self._tasks), max(queued, 0), self._active)

    def _start(self, job_id: JobId, worker_id: WorkerId) -> None:
        task = self._scope.spawn(self._carry_out(job_id), job_id)
        self._tasks[job_id] = task
        task.add_done_callback(lambda _: self._next(job_id, worker_id))

    async def _carry_out(self, job_id: JobId) -> None:
        await self._run(job_id)

    def _next(self, job_id: JobId, worker_id: WorkerId) -> None:
        self._tasks.pop(job_id, None)
        queue = self._queues.get(worker_id)
        if queue is None:
            return
        queue.remove(job_id)
        if not queue:
            del self._queues[worker_id]
        elif not self._scope.is_closed:
            self._start(queue[0], worker_id)

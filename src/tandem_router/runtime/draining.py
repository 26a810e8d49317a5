"""The jobs DRAIN_WORKER and REMOVE_WORKER: wait until nothing needs a worker; at the deadline, abort what is left.

What needs it are the legs on it, and decode legs elsewhere that still fetch the blocks of a prefill that has ended.
The worker was taken out of routing when the job was asked for; here is only the waiting. It holds no slot.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tandem_router.core.commands import BeginStep, EndJob, EndStep, NoteStep
from tandem_router.errors import Reason
from tandem_router.model.failure import Failure
from tandem_router.model.ids import JobId, WorkerId
from tandem_router.model.job import Job, JobState, JobType, StepState
from tandem_router.model.worker import Drain
from tandem_router.ports import Clock
from tandem_router.runtime.idleness import Idleness
from tandem_router.runtime.pipeline import Pipeline

__all__ = ["AbortLegs", "Draining"]

AbortLegs = Callable[[WorkerId, Failure], int]
"""End the open legs of a worker with a failure; returns how many were told."""

_PROGRESS_S = 1.0
"""At most this often a drain says how many legs are left: each saying is a revision."""


class Draining:
    """Carries drains out; one object serves all jobs."""

    def __init__(self, pipeline: Pipeline, idleness: Idleness, clock: Clock, *, abort_grace_s: float) -> None:
        """abort_grace_s: how long a removal waits for legs that it has aborted."""
        self._pipeline = pipeline
        self._idleness = idleness
        self._clock = clock
        self._abort_grace_s = abort_grace_s
        self.abort_legs: AbortLegs = _nobody
        """The relay's; set once, before the first worker is registered."""

    async def run(self, job: Job) -> None:
        """Wait, then end the job, which removes the worker of a REMOVE_WORKER job."""
        legs = self._idleness.legs(job.worker_id)
        await self._pipeline.submit(BeginStep(job.id, "drain", f"waiting for {_legs(legs)}" if legs else "idle"))
        detail = await self._wait(job, legs)
        await self._pipeline.submit(EndStep(job.id, "drain", StepState.SUCCEEDED, detail))
        await self._pipeline.submit(EndJob(job.id, JobState.SUCCEEDED))

    async def _wait(self, job: Job, told: int) -> str:
        """What the drain has come to, once it is over."""
        is_removal = job.type is JobType.REMOVE_WORKER
        aborted, gives_up_at_s, told_at_s = 0, None, self._clock.monotonic_s()
        while legs := self._idleness.legs(job.worker_id):
            wish = self._wish(job)
            if wish is None:
                return f"{_legs(legs)} still open"
            now_s = self._clock.monotonic_s()
            left_s = None if wish.deadline_at_s is None else wish.deadline_at_s - self._clock.wall_s()
            if left_s is not None and left_s <= 0.0 and gives_up_at_s is None:
                aborted = self.abort_legs(job.worker_id, _deadline_passed(job.worker_id))
                gives_up_at_s = now_s + (self._abort_grace_s if aborted else 0.0)
                continue
            if gives_up_at_s is not None and is_removal and now_s >= gives_up_at_s:
                return f"{_legs(legs)} still open at the deadline; they are lost with the worker"
            if legs != told and now_s - told_at_s >= _PROGRESS_S:
                await self._note(job.id, legs, aborted)
                told, told_at_s = legs, now_s
                continue
            # After the abort a drain has no deadline: every leg that was aborted ends within the transfer grace.
            limit_s = gives_up_at_s - now_s if gives_up_at_s is not None and is_removal else _PROGRESS_S
            if left_s is not None and gives_up_at_s is None:
                limit_s = min(limit_s, left_s)
            await self._wait_idle(job.worker_id, limit_s)
        return f"idle; {_legs(aborted)} aborted at the deadline" if aborted else "idle"

    async def _wait_idle(self, worker_id: WorkerId, limit_s: float) -> None:
        try:
            async with asyncio.timeout(limit_s):
                await self._idleness.wait(worker_id)
        except TimeoutError:
            return

    async def _note(self, job_id: JobId, legs: int, aborted: int) -> None:
        said = f"; {_legs(aborted)} aborted at the deadline" if aborted else ""
        await self._pipeline.submit(NoteStep(job_id, "drain", f"waiting for {_legs(legs)}{said}"))

    def _wish(self, job: Job) -> Drain | None:
        worker = self._pipeline.registry.worker(job.worker_id)
        if worker is None:
            return None
        return worker.removal if job.type is JobType.REMOVE_WORKER else worker.drain


def _legs(count: int) -> str:
    return f"{count} leg" if count == 1 else f"{count} legs"


def _deadline_passed(worker_id: WorkerId) -> Failure:
    sentence = f"worker {worker_id} was drained and its deadline passed before the request ended"
    return Failure(Reason.WORKER_LOST, sentence, {"worker_id": worker_id})


def _nobody(worker_id: WorkerId, failure: Failure) -> int:
    return 0

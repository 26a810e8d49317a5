"""Carrying one job out, whatever it is and however it ends: its record ends too."""

from __future__ import annotations

import asyncio

from tandem_router.core.commands import EndJob, StartJob
from tandem_router.errors import Reason, TandemError
from tandem_router.model.failure import Failure
from tandem_router.model.ids import JobId
from tandem_router.model.job import Job, JobState
from tandem_router.runtime.dialing import Dialing
from tandem_router.runtime.draining import Draining
from tandem_router.runtime.pipeline import Pipeline
from tandem_router.runtime.registration import Registration, StepFailed

__all__ = ["JobWork"]


class JobWork:
    """The work of every type of job."""

    def __init__(self, pipeline: Pipeline, registration: Registration, draining: Draining, dialing: Dialing) -> None:
        self._pipeline = pipeline
        self._registration = registration
        self._draining = draining
        self._dialing = dialing

    async def run(self, job_id: JobId) -> None:
        """Carry a job out; never raises but when cancelled, or when the control loop closes."""
        try:
            outcome = await self._pipeline.submit(StartJob(job_id))
            job = outcome.job
            if outcome.is_stale or job is None:
                return
            await self._do(job)
            await self._end_left_open(job)
        except asyncio.CancelledError:
            # CancelJob stopped us; its record ends now that the work has. (Closing cancels too, and needs none.)
            await self._end_cancelled(job_id)
            raise
        except TandemError as error:
            # DRAINING: the control loop is closing; the record ends with the process.
            if error.reason is not Reason.DRAINING:
                raise

    async def _do(self, job: Job) -> None:
        failure: Failure | None = None
        try:
            if job.type.registers:
                await self._registration.run(job)
            else:
                await self._draining.run(job)
        except StepFailed as failed:
            failure = failed.failure
        except TandemError as error:
            if error.reason is Reason.DRAINING:
                raise
            failure = Failure.of(error)
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as fault:  # a panic inside an extension module is no Exception
            failure = Failure(Reason.INTERNAL_ERROR, f"job {job.id} failed by a fault of ours; see the log")
            asyncio.get_running_loop().call_exception_handler({"message": f"job {job.id} failed", "exception": fault})
        finally:
            self._dialing.drop(job.worker_id, job.id)
        if failure is not None:
            await self._pipeline.submit(EndJob(job.id, JobState.FAILED, failure))

    async def _end_cancelled(self, job_id: JobId) -> None:
        job = self._pipeline.registry.jobs.get(job_id)
        if job is not None and not job.state.is_final and job.cancel is not None:
            await self._pipeline.submit(EndJob(job_id, JobState.CANCELLED))

    async def _end_left_open(self, job: Job) -> None:
        """A job that noticed that it has no say any more has returned without a word."""
        now = self._pipeline.registry.jobs.get(job.id)
        if now is None or now.state.is_final:
            return
        failure = Failure(Reason.GENERATION_MISMATCH, f"worker {job.worker_id} changed while job {job.id} ran")
        await self._pipeline.submit(EndJob(job.id, JobState.FAILED, failure))

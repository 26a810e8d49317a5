"""The steps of a job: begun, tried again with growing pauses, ended; every try and failure is in the job's record."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from tandem_router.core.commands import BeginStep, EndStep
from tandem_router.errors import Reason
from tandem_router.model.failure import EngineFailure, Failure
from tandem_router.model.ids import JobId
from tandem_router.model.job import StepState
from tandem_router.model.settings import RuntimeSettings
from tandem_router.model.worker import Worker
from tandem_router.ports import Rng
from tandem_router.runtime.job_runner import JobRunner
from tandem_router.runtime.pipeline import Pipeline
from tandem_router.runtime.subjects import JobOver

__all__ = ["ConnectionBroke", "JobSteps", "StepFailed"]

_FINAL = frozenset({Reason.RUNTIME_NOT_DETECTED, Reason.RUNTIME_CANNOT_RETURN_CONTEXT_PARAMS})
"""Answers that no further try changes."""
_CONNECT = "connect"


class StepFailed(Exception):
    """A step gave up: the job fails with this."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.sentence)
        self.failure = failure


class ConnectionBroke(Exception):
    """The connection ended in the middle of the job: begin again with another one."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.sentence)
        self.failure = failure


class JobSteps:
    """Carries steps out. Every method raises JobOver when the job has no say any more."""

    def __init__(self, pipeline: Pipeline, runner: JobRunner, rng: Rng, settings: RuntimeSettings) -> None:
        self._pipeline = pipeline
        self._runner = runner
        self._rng = rng
        self._settings = settings

    async def begin(self, job_id: JobId, step: str) -> None:
        """The step is being worked on."""
        if (await self._pipeline.submit(BeginStep(job_id, step))).is_stale:
            raise JobOver

    async def end(
        self,
        job_id: JobId,
        step: str,
        detail: str,
        failure: Failure | None = None,
        state: StepState = StepState.SUCCEEDED,
        retry_in_s: float | None = None,
    ) -> None:
        """The step, or one try of it where the state is RUNNING, has ended."""
        if (await self._pipeline.submit(EndStep(job_id, step, state, detail, failure, retry_in_s))).is_stale:
            raise JobOver

    async def skip(self, job_id: JobId, step: str, detail: str) -> None:
        """The step does not apply."""
        await self.end(job_id, step, detail, None, StepState.SKIPPED)

    async def attempt(
        self,
        job_id: JobId,
        step: str,
        worker: Worker,
        work: Callable[[], Awaitable[str]],
        *,
        trace: Callable[[], str] = str,
    ) -> None:
        """Try a step up to max_connection_attempts times with exponential backoff; waiting holds no slot.

        work: returns the detail of a step that has succeeded. trace: what a failed try has to tell beside its failure.
        Raises StepFailed after the last try, and ConnectionBroke when the connection of an earlier step has ended.
        """
        limit = self.tries(worker)
        for number in range(1, limit + 1):
            await self.begin(job_id, step)
            details: list[str] = []

            async def run(details: list[str] = details) -> None:
                details.append(await work())

            try:
                await self._runner.in_slot(run)
            except EngineFailure as error:
                failure, told = Failure(error.reason, error.sentence), trace()
                prefix = f"{told}; " if told else ""
                if number == limit or error.reason in _FINAL:
                    detail = f"{prefix}gave up after try {number} of {limit}"
                    await self.end(job_id, step, detail, failure, StepState.FAILED)
                    raise StepFailed(failure) from None
                if error.connection_lost and step != _CONNECT:
                    detail = f"{prefix}the connection broke; dialling again"
                    await self.end(job_id, step, detail, failure, StepState.RUNNING)
                    raise ConnectionBroke(failure) from None
                backoff_s = self.backoff_s(number)
                detail = f"{prefix}try {number} of {limit} failed; next in {backoff_s:.2f} s"
                await self.end(job_id, step, detail, failure, StepState.RUNNING, backoff_s)
                await asyncio.sleep(backoff_s)
            else:
                await self.end(job_id, step, details[0])
                return

    def tries(self, worker: Worker) -> int:
        """How often a step of this worker's job is tried."""
        stated = worker.spec.max_connection_attempts
        return max(1, self._settings.jobs.max_connection_attempts if stated is None else stated)

    def backoff_s(self, number: int) -> float:
        """Doubles from the initial value up to the greatest; plus or minus a fifth, so that a fleet does not march."""
        jobs = self._settings.jobs
        # Exponents are capped so that an operator's million attempts do not overflow a float.
        plain_s = min(jobs.connect_backoff_max_s, jobs.connect_backoff_initial_s * 2.0 ** min(number - 1, 60))
        return plain_s * (0.8 + 0.4 * self._rng.random())

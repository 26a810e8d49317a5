"""The control loop: what operators ask for, carried out by jobs and kept true by probes.

All changes go through one pipeline (runtime/pipeline.py); here, calls become commands and directives become tasks.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass

from tandem_router.core.commands import (
    CancelJob,
    CloseClient,
    CreateWorker,
    DeleteWorker,
    Directive,
    EndJob,
    RefreshPairing,
    SetConditions,
    StartJob,
    StartProbes,
    SubmitJob,
)
from tandem_router.core.ledger import LegLedger
from tandem_router.core.registry import Registry, RegistryStatistics
from tandem_router.core.watch_log import WatchLog
from tandem_router.errors import Reason, TandemError
from tandem_router.model.failure import EngineFailure, Failure
from tandem_router.model.ids import JobId, RankKey, WorkerId, canonical_uuid
from tandem_router.model.job import Job, JobState, JobType
from tandem_router.model.settings import RuntimeSettings
from tandem_router.model.spec import WorkerSpec
from tandem_router.model.worker import Credentials, Worker
from tandem_router.ports import Clock, EngineDialer, Ids, Observer, Rng, Store, TextCodecs
from tandem_router.runtime.dialing import Dialing
from tandem_router.runtime.fleet import WorkerFleet
from tandem_router.runtime.job_runner import JobRunner, JobRunnerStatistics
from tandem_router.runtime.models import ServedModel, served_models
from tandem_router.runtime.pairing import pairable
from tandem_router.runtime.pipeline import Pipeline
from tandem_router.runtime.probes import ProbeContext, WorkerProbe
from tandem_router.runtime.registration import Registration, StepFailed
from tandem_router.runtime.removal import Idleness, Removal
from tandem_router.runtime.scope import TaskScope

__all__ = ["Control", "ControlStatistics"]


@dataclass(frozen=True, slots=True)
class ControlStatistics:
    """A frozen reading for admin rpcs, metrics and assertions."""

    registry: RegistryStatistics
    jobs: JobRunnerStatistics
    probes: int
    open_clients: int
    credentials: int
    """Workers whose credentials are held."""
    tasks: int


class Control:
    """Workers and jobs. One event loop owns it; create it, `start` it, and `close` it there."""

    def __init__(
        self,
        *,
        clock: Clock,
        ids: Ids,
        rng: Rng,
        store: Store,
        dialer: EngineDialer,
        codecs: TextCodecs,
        ledger: LegLedger,
        observer: Observer,
        settings: RuntimeSettings | None = None,
    ) -> None:
        """ledger: the relay's; removals wait until it holds no leg of their worker."""
        self._settings = settings or RuntimeSettings()
        self._ids = ids
        self._registry = Registry(self._settings.jobs)
        self._scope = TaskScope("control")
        self._pipeline = Pipeline(self._registry, store, clock, observer, self._carry_out, WatchLog())
        self._runner = JobRunner(self._run_job, self._settings.jobs.max_running)
        self._dialing = Dialing(dialer, self._settings)
        self.fleet = WorkerFleet(self._registry, self._scope, self._leg_failed)
        """ports.Fleet for the relay."""
        self._registration = Registration(
            self._pipeline, self.fleet, self._runner, self._dialing, dialer, codecs, rng, self._settings
        )
        self._removal = Removal(self._pipeline, ledger, Idleness(ledger))
        self._probe_context = ProbeContext(
            self._pipeline, self.fleet, self._dialing, dialer, codecs, rng, self._settings, self._scope
        )
        self._probes: dict[WorkerId, WorkerProbe] = {}
        self._probe_tasks: dict[WorkerId, asyncio.Task[None]] = {}
        self._refresh: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin; the in-memory store holds nothing to resume, so there is nothing to do yet."""

    async def close(self) -> None:
        """Stop jobs and probes, close every connection; idempotent. Workers keep what they have: nothing is removed."""
        await self._runner.close()
        await self._pipeline.close()
        await self._scope.close()
        await self.fleet.close()

    async def create_worker(
        self, spec: WorkerSpec, credentials: Credentials | None = None, request_id: str | None = None
    ) -> tuple[Worker, Job]:
        """Reserve the URL and begin to register; returns at once with the PENDING worker and its job.

        Idempotent by request_id: the same spec gives the same worker (as it is now), another one REQUEST_ID_REUSED.
        Raises TandemError: INVALID_WORKER_URL, INVALID_REQUEST, FEATURE_NOT_IMPLEMENTED, WORKER_ALREADY_EXISTS,
        WORKER_CREATE_IN_PROGRESS, REQUEST_ID_REUSED, JOB_QUEUE_FULL, WORKER_NOT_FOUND (a repeat after the delete).
        """
        worker_id, job_id = WorkerId(self._ids.uuid()), JobId(self._ids.uuid())
        # Kept before the job can start, under an id that nobody knows yet.
        self._dialing.keep(worker_id, credentials)
        try:
            outcome = await self._pipeline.submit(
                CreateWorker(worker_id, job_id, spec, credentials is not None, request_id or None)
            )
        except TandemError:
            self._dialing.forget(worker_id)
            raise
        worker, job = outcome.worker, outcome.job
        assert worker is not None, "a create answers with a worker or raises"
        if worker.id != worker_id:
            self._dialing.forget(worker_id)
        if job is None:
            # The repeat of a create whose job's record has expired.
            raise TandemError(
                Reason.WORKER_ALREADY_EXISTS,
                f"worker {worker.id} was created by this request_id and its job's record has expired",
                metadata={"worker_id": worker.id, "url": worker.url},
            )
        return worker, job

    async def get_worker(self, worker_id: str) -> Worker:
        """The worker; raises TandemError: INVALID_WORKER_ID, WORKER_NOT_FOUND."""
        await self._pipeline.expire()
        worker = self._registry.worker(_worker_id(worker_id))
        if worker is None:
            raise TandemError(
                Reason.WORKER_NOT_FOUND,
                f"no worker has the id {worker_id}",
                field="worker_id",
                metadata={"worker_id": worker_id},
            )
        return worker

    async def list_workers(self) -> tuple[Worker, ...]:
        """Every worker, oldest first."""
        await self._pipeline.expire()
        return tuple(self._registry.workers().values())

    async def delete_worker(self, worker_id: str, drain_timeout_s: float | None = None, force: bool = False) -> Job:
        """Drain and forget a worker; returns at once with the job, the same one while it drains.

        drain_timeout_s: None = the router's default, math.inf = as long as it takes, 0 = do not wait.
        force: forget it now; requests in flight there fail with WORKER_LOST or are tried elsewhere.
        Raises TandemError: INVALID_WORKER_ID, WORKER_NOT_FOUND.
        """
        timeout_s: float | None = self._settings.jobs.drain_timeout_s if drain_timeout_s is None else drain_timeout_s
        if timeout_s == math.inf:
            timeout_s = None
        job_id = JobId(self._ids.uuid())
        outcome = await self._pipeline.submit(DeleteWorker(_worker_id(worker_id), job_id, timeout_s, force))
        assert outcome.job is not None, "a delete answers with a job or raises"
        return outcome.job

    async def get_job(self, job_id: str) -> Job:
        """The job; raises TandemError: INVALID_REQUEST for an id that is not a UUID, JOB_NOT_FOUND."""
        await self._pipeline.expire()
        canonical = canonical_uuid(job_id)
        if canonical is None:
            raise TandemError(Reason.INVALID_REQUEST, f"{job_id!r} is not a UUID", field="job_id")
        job = self._registry.jobs.get(JobId(canonical))
        if job is None:
            raise TandemError(Reason.JOB_NOT_FOUND, f"no job has the id {job_id}", field="job_id")
        return job

    async def list_jobs(self) -> tuple[Job, ...]:
        """Every job whose record is kept, oldest first."""
        await self._pipeline.expire()
        return self._registry.jobs.all()

    def models(self) -> tuple[ServedModel, ...]:
        """The models of all registered workers, in the order of registration."""
        return served_models(self._registry.workers().values())

    @property
    def revision(self) -> int:
        """Store-wide; of the last change."""
        return self._registry.revision

    @property
    def log(self) -> WatchLog:
        """The last events, for watches."""
        return self._pipeline.log

    def statistics(self) -> ControlStatistics:
        """Counts of now."""
        return ControlStatistics(
            registry=self._registry.statistics(),
            jobs=self._runner.statistics(),
            probes=len(self._probes),
            open_clients=self.fleet.open_clients,
            credentials=len(self._dialing),
            tasks=len(self._scope),
        )

    def __repr__(self) -> str:
        return f"<Control {self._registry!r}, {len(self._probes)} probes>"

    def _carry_out(self, directive: Directive) -> None:
        if self._scope.is_closed:
            return
        match directive:
            case SubmitJob():
                job = self._registry.jobs.get(directive.job_id)
                if job is not None:
                    self._runner.submit(job.id, job.worker_id)
            case CancelJob():
                self._runner.cancel(directive.job_id)
            case StartProbes():
                self._start_probes(directive.worker_id)
            case CloseClient():
                self._probes.pop(directive.worker_id, None)
                task = self._probe_tasks.pop(directive.worker_id, None)
                if task is not None:
                    task.cancel()
                self._dialing.forget(directive.worker_id)
                self.fleet.retire(directive.worker_id)
            case RefreshPairing():
                if self._refresh is None or self._refresh.done():
                    self._refresh = self._scope.spawn(self._refresh_pairing(), "refresh pairing")

    def _start_probes(self, worker_id: WorkerId) -> None:
        worker = self._registry.worker(worker_id)
        if worker is not None:
            probe = WorkerProbe(self._probe_context, worker)
            self._probes[worker_id] = probe
            self._probe_tasks[worker_id] = self._scope.spawn(probe.run(), f"probe {worker_id}")

    def _leg_failed(self, key: RankKey, failure: EngineFailure) -> None:
        probe = self._probes.get(key.worker_id)
        if probe is not None:
            probe.leg_failed(key, failure)

    async def _refresh_pairing(self) -> None:
        """Say anew of every half of a pair whether it fits somebody, until nothing has changed meanwhile."""
        seen = None
        while seen is not self._registry.workers():
            seen = self._registry.workers()
            for worker in seen.values():
                claim = None if worker.facts is None else pairable(worker, seen.values())
                if claim is None:
                    continue
                shown = next((old for old in worker.conditions if old.type == claim.type), None)
                if shown is None or (shown.reason, shown.message) != (claim.reason, claim.message):
                    try:
                        await self._pipeline.submit(SetConditions(worker.id, worker.epoch, (claim,)))
                    except TandemError:
                        return  # the control loop is closing

    async def _run_job(self, job_id: JobId) -> None:
        """Carry one job out; whatever happens, its record ends."""
        outcome = await self._pipeline.submit(StartJob(job_id))
        job = outcome.job
        if outcome.is_stale or job is None:
            return
        try:
            if job.type is JobType.REMOVE_WORKER:
                await self._removal.run(job.id, job.worker_id)
            else:
                await self._registration.run(job.id, job.worker_id)
        except StepFailed as failed:
            await self._pipeline.submit(EndJob(job.id, JobState.FAILED, failed.failure))
        except TandemError as error:
            if error.reason is Reason.DRAINING:
                return  # the control loop is closing; the record ends with the process
            await self._pipeline.submit(EndJob(job.id, JobState.FAILED, Failure.of(error)))
        except Exception as fault:
            failure = Failure(Reason.INTERNAL_ERROR, f"job {job.id} failed by a fault of ours; see the log")
            await self._pipeline.submit(EndJob(job.id, JobState.FAILED, failure))
            asyncio.get_running_loop().call_exception_handler({"message": f"job {job.id} failed", "exception": fault})


def _worker_id(text: str) -> WorkerId:
    canonical = canonical_uuid(text)
    if canonical is None:
        raise TandemError(Reason.INVALID_WORKER_ID, f"{text!r} is not a UUID", field="worker_id")
    return WorkerId(canonical)

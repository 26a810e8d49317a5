"""The control loop: what operators ask for, carried out by jobs and kept true by probes.

All changes go through one pipeline (runtime/pipeline.py); here, calls become commands and directives become tasks.
"""

from __future__ import annotations

from dataclasses import dataclass

from tandem_router.core.commands import (
    CancelJob,
    CloseClient,
    CreateWorker,
    DeleteWorker,
    Directive,
    DrainWorker,
    Outcome,
    RefreshPairing,
    ReplaceWorker,
    RequestCancel,
    StartProbes,
    SubmitJob,
    UndrainWorker,
    UpdateWorker,
    WakeDrain,
)
from tandem_router.core.ledger import LegLedger
from tandem_router.core.registry import Registry, RegistryStatistics
from tandem_router.core.watch_workers import WorkerHistory
from tandem_router.errors import TandemError
from tandem_router.model.failure import EngineFailure
from tandem_router.model.ids import JobId, RankKey, WorkerId
from tandem_router.model.job import Job
from tandem_router.model.settings import RuntimeSettings
from tandem_router.model.spec import WorkerSpec
from tandem_router.model.spec_patch import SpecPatch
from tandem_router.model.worker import Credentials, CredentialsPatch, Worker
from tandem_router.ports import Clock, EngineDialer, Ids, Observer, Rng, Store, TextCodecs
from tandem_router.runtime.dialing import Dialing
from tandem_router.runtime.draining import AbortLegs, Draining
from tandem_router.runtime.fleet import WorkerFleet
from tandem_router.runtime.idleness import Idleness
from tandem_router.runtime.job_runner import JobRunner, JobRunnerStatistics
from tandem_router.runtime.job_work import JobWork
from tandem_router.runtime.load_samples import LoadSamples
from tandem_router.runtime.pairing import Pairings
from tandem_router.runtime.pipeline import Pipeline, Settle
from tandem_router.runtime.probes import ProbeContext
from tandem_router.runtime.probing import Probing
from tandem_router.runtime.rank_watch import RankWatch
from tandem_router.runtime.registration import Registration
from tandem_router.runtime.registry_reads import RegistryReads, job_id_of, worker_id_of
from tandem_router.runtime.scope import TaskScope
from tandem_router.runtime.tokenizers import Tokenizers

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


class Control(RegistryReads):
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
        revision: int = 0,
    ) -> None:
        """ledger: the relay's; removals wait until it holds no leg of their worker.

        revision: before the first change.
        """
        self._settings = settings or RuntimeSettings()
        self._ids = ids
        registry = Registry(self._settings.jobs, revision=revision)
        self._scope = TaskScope("control")
        self.history = WorkerHistory(registry, capacity=self._settings.watch.log_capacity)
        """What changed, for watches."""
        pipeline = Pipeline(registry, store, clock, observer, self._carry_out, self.history)
        self._runner = JobRunner(self._run_job, self._settings.jobs.max_running)
        self._dialing = Dialing(dialer, self._settings)
        self._idleness = Idleness(ledger)
        ranks = RankWatch(pipeline, self._scope)
        self.fleet = WorkerFleet(registry, self._scope, self._leg_failed, self._idleness, ranks)
        """ports.Fleet for the relay."""
        super().__init__(registry, pipeline, LoadSamples(self.fleet, clock, self._settings.load))
        tokenizers = Tokenizers(pipeline, codecs, self._settings.jobs.tokenizer_timeout_s)
        registration = Registration(
            pipeline, self.fleet, self._runner, self._dialing, dialer, tokenizers, rng, self._settings
        )
        self._draining = Draining(pipeline, self._idleness, clock, abort_grace_s=self._settings.abort_timeout_s)
        self._work = JobWork(pipeline, registration, self._draining, self._dialing)
        self._pairings = Pairings(pipeline, self._scope)
        self._probing = Probing(
            ProbeContext(pipeline, self.fleet, self._dialing, dialer, tokenizers, rng, self._settings, self._scope)
        )

    def use(self, abort_legs: AbortLegs) -> None:
        """Whom to ask to end a worker's legs at the deadline of its drain; said once, before `start`."""
        self._draining.abort_legs = abort_legs

    async def start(self) -> None:
        """Begin; the in-memory store holds nothing to resume, so there is nothing to do yet."""

    async def close(self) -> None:
        """Stop jobs and probes, close every connection; idempotent. Workers keep what they have: nothing is removed."""
        await self._runner.close()
        await self.pipeline.close()
        await self._scope.close()
        await self.fleet.close()

    async def create_worker(
        self, spec: WorkerSpec, credentials: Credentials | None = None, request_id: str | None = None
    ) -> tuple[Worker, Job | None]:
        """Reserve the URL and begin to register; returns at once with the PENDING worker and its job.

        Idempotent by request_id: the same spec gives the same worker (as it is now) and job (None once its record has
        expired), another one REQUEST_ID_REUSED.
        Raises TandemError: INVALID_WORKER_URL, INVALID_REQUEST, FEATURE_NOT_IMPLEMENTED, WORKER_ALREADY_EXISTS,
        WORKER_CREATE_IN_PROGRESS, REQUEST_ID_REUSED, JOB_QUEUE_FULL, WORKER_NOT_FOUND (a repeat after the delete).
        """
        worker_id, job_id = WorkerId(self._ids.uuid()), JobId(self._ids.uuid())
        # Kept before the job can start, under an id that nobody knows yet.
        self._dialing.keep(worker_id, credentials)
        try:
            outcome = await self.pipeline.submit(
                CreateWorker(worker_id, job_id, spec, credentials is not None, request_id or None)
            )
        except TandemError:
            self._dialing.forget(worker_id)
            raise
        worker = outcome.worker
        assert worker is not None, "a create answers with a worker or raises"
        if worker.id != worker_id:
            self._dialing.forget(worker_id)
        return worker, outcome.job

    async def replace_worker(
        self,
        worker_id: str,
        spec: WorkerSpec,
        credentials: CredentialsPatch | None = None,
        expected_generation: int | None = None,
    ) -> tuple[Worker, Job]:
        """Register the worker anew under another spec; it serves under the old one until the new one is found good.

        Raises TandemError: INVALID_WORKER_ID, INVALID_WORKER_URL, INVALID_REQUEST (another endpoint),
        FEATURE_NOT_IMPLEMENTED, WORKER_NOT_FOUND, GENERATION_MISMATCH, WORKER_BEING_DELETED, JOB_QUEUE_FULL; of a
        FAILED worker whose URL has a successor WORKER_ALREADY_EXISTS, WORKER_CREATE_IN_PROGRESS.
        """
        job_id = JobId(self._ids.uuid())
        has_any = self._dialing.has_any_after(worker_id_of(worker_id), credentials, is_whole=True)
        command = ReplaceWorker(worker_id_of(worker_id), job_id, spec, has_any, expected_generation)
        outcome = await self.pipeline.submit(command, self._keep(job_id, credentials, is_whole=True))
        worker, job = outcome.worker, outcome.job
        assert worker is not None, "a replacement answers with a worker or raises"
        assert job is not None, "a replacement answers with a job or raises"
        return worker, job

    async def update_worker(
        self,
        worker_id: str,
        patch: SpecPatch,
        credentials: CredentialsPatch | None = None,
        expected_generation: int | None = None,
    ) -> tuple[Worker, Job | None]:
        """Change some fields of the spec; the job carries out what has to be dialled for, None where all is in effect.

        Raises as `replace_worker` does.
        """
        job_id = JobId(self._ids.uuid())
        has_any = self._dialing.has_any_after(worker_id_of(worker_id), credentials, is_whole=False)
        command = UpdateWorker(worker_id_of(worker_id), job_id, patch, has_any, expected_generation)
        outcome = await self.pipeline.submit(command, self._keep(job_id, credentials, is_whole=False))
        assert outcome.worker is not None, "an update answers with a worker or raises"
        return outcome.worker, outcome.job

    async def drain_worker(
        self,
        worker_id: str,
        timeout_s: float | None = None,
        reason: str = "",
        expected_generation: int | None = None,
    ) -> tuple[Worker, Job]:
        """Take the worker out of routing at once; the job ends when its last request has. None = as long as they take.

        Said again, it replaces timeout and reason. Raises TandemError: INVALID_WORKER_ID, WORKER_NOT_FOUND,
        GENERATION_MISMATCH, WORKER_BEING_DELETED, JOB_QUEUE_FULL.
        """
        job_id = JobId(self._ids.uuid())
        command = DrainWorker(worker_id_of(worker_id), job_id, timeout_s, reason, expected_generation)
        outcome = await self.pipeline.submit(command)
        worker, job = outcome.worker, outcome.job
        assert worker is not None, "a drain answers with a worker or raises"
        assert job is not None, "a drain answers with a job or raises"
        return worker, job

    async def undrain_worker(self, worker_id: str, expected_generation: int | None = None) -> Worker:
        """Take the wish to drain back and cancel its job; nothing happens where there is none.

        Raises TandemError: INVALID_WORKER_ID, WORKER_NOT_FOUND, GENERATION_MISMATCH, WORKER_BEING_DELETED.
        """
        outcome = await self.pipeline.submit(UndrainWorker(worker_id_of(worker_id), expected_generation))
        assert outcome.worker is not None, "an undrain answers with a worker or raises"
        return outcome.worker

    async def delete_worker(
        self,
        worker_id: str,
        drain_timeout_s: float | None = None,
        force: bool = False,
        expected_generation: int | None = None,
    ) -> Job:
        """Drain and forget a worker; returns at once with the job, the same one while it drains.

        drain_timeout_s: None = the worker's drain_settle, else the router's default; math.inf = as long as it takes;
        0 = do not wait. What is left then is aborted.
        force: forget it now; requests in flight there fail with WORKER_LOST or are tried elsewhere.
        Raises TandemError: INVALID_WORKER_ID, WORKER_NOT_FOUND, GENERATION_MISMATCH, JOB_QUEUE_FULL.
        """
        job_id = JobId(self._ids.uuid())
        command = DeleteWorker(worker_id_of(worker_id), job_id, drain_timeout_s, force, expected_generation)
        outcome = await self.pipeline.submit(command)
        assert outcome.job is not None, "a delete answers with a job or raises"
        return outcome.job

    async def cancel_job(self, job_id: str, reason: str = "") -> Job:
        """Ask a job to stop: a registration leaves a FAILED worker, a drain or delete that waits is taken back.

        Raises TandemError: INVALID_REQUEST for an id that is not a UUID, JOB_NOT_FOUND, JOB_FINISHED.
        """
        outcome = await self.pipeline.submit(RequestCancel(job_id_of(job_id), reason))
        assert outcome.job is not None, "a cancel answers with a job or raises"
        return outcome.job

    def open_legs(self, worker_id: WorkerId) -> int:
        """What a drain waits for: legs of ours on a worker, of all ranks and lives, and those that fetch from it."""
        return self._idleness.legs(worker_id)

    def statistics(self) -> ControlStatistics:
        """Counts of now."""
        return ControlStatistics(
            registry=self._registry.statistics(),
            jobs=self._runner.statistics(),
            probes=len(self._probing),
            open_clients=self.fleet.open_clients,
            credentials=len(self._dialing),
            tasks=len(self._scope),
        )

    def __repr__(self) -> str:
        return f"<Control {self._registry!r}, {len(self._probing)} probes>"

    def _carry_out(self, directive: Directive) -> None:
        if self._scope.is_closed:
            return
        match directive:
            case SubmitJob():
                job = self._registry.jobs.get(directive.job_id)
                if job is not None:
                    self._runner.submit(job.id, job.worker_id)
            case CancelJob():
                self._cancel(directive.job_id)
            case StartProbes():
                self._probing.start(directive.worker_id)
            case CloseClient():
                self._probing.stop(directive.worker_id)
                if directive.is_gone:
                    self._dialing.forget(directive.worker_id)
                self.fleet.retire(directive.worker_id)
            case WakeDrain():
                self._idleness.wake(directive.worker_id)
            case RefreshPairing():
                self._pairings.changed(directive.worker_id)

    def _cancel(self, job_id: JobId) -> None:
        self._runner.cancel(job_id)
        job = self._registry.jobs.get(job_id)
        if job is not None and job.state.is_final:
            self._dialing.drop(job.worker_id, job.id)

    def _keep(self, job_id: JobId, credentials: CredentialsPatch | None, *, is_whole: bool) -> Settle:
        """Keep credentials in the step in which the spec they belong to is, before its job can start."""

        def settle(outcome: Outcome | None) -> None:
            if outcome is None or outcome.worker is None or outcome.job is None or outcome.job.id != job_id:
                return
            worker_id = outcome.worker.id
            if self._registry.wanted_of(worker_id) is None:
                self._dialing.change(worker_id, credentials)
                return
            earlier = None if is_whole else self._dialing.wanted(worker_id)
            self._dialing.want(worker_id, job_id, (credentials or CredentialsPatch()).over(earlier))

        return settle

    def _leg_failed(self, key: RankKey, failure: EngineFailure) -> None:
        self._probing.leg_failed(key, failure)

    async def _run_job(self, job_id: JobId) -> None:
        await self._work.run(job_id)

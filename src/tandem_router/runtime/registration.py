"""The jobs that make a worker reachable: reach it, read it, look whether it pairs, and put it in force.

REGISTER_WORKER does so for a newcomer, REPLACE_WORKER and UPDATE_WORKER for a changed spec. Every step, try and failure
is in the job's record while it runs. Waiting between tries holds no slot. The job may be cancelled at any await: until
the connection belongs to the fleet it is closed here, and what comes too late is refused by the core.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from tandem_router.core.health import health_settings
from tandem_router.model.failure import EngineFailure, Failure
from tandem_router.model.ids import JobId
from tandem_router.model.job import Job, StepState
from tandem_router.model.settings import RuntimeSettings
from tandem_router.model.worker import Condition, Worker
from tandem_router.ports import EngineClient, EngineDialer, Rng
from tandem_router.runtime.deadline import within
from tandem_router.runtime.dialing import Dialing
from tandem_router.runtime.facts import EffectiveFacts, effective_facts
from tandem_router.runtime.fleet import WorkerFleet
from tandem_router.runtime.job_runner import JobRunner
from tandem_router.runtime.pairing import pairable
from tandem_router.runtime.pipeline import Pipeline
from tandem_router.runtime.reaching import Reaching
from tandem_router.runtime.steps import ConnectionBroke, JobSteps, StepFailed
from tandem_router.runtime.subjects import JobOver, Newcomer, Subject, Successor
from tandem_router.runtime.tokenizers import Tokenizers

__all__ = ["Registration", "StepFailed"]


@dataclass(slots=True)
class _Found:
    """What the steps hand to each other."""

    effective: EffectiveFacts | None = None


class Registration:
    """Carries out registrations; one object serves all jobs."""

    def __init__(
        self,
        pipeline: Pipeline,
        fleet: WorkerFleet,
        runner: JobRunner,
        dialing: Dialing,
        dialer: EngineDialer,
        tokenizers: Tokenizers,
        rng: Rng,
        settings: RuntimeSettings,
    ) -> None:
        self._pipeline = pipeline
        self._fleet = fleet
        self._steps = JobSteps(pipeline, runner, rng, settings)
        self._reaching = Reaching(self._steps, dialing, fleet)
        self._dialing = dialing
        self._dialer = dialer
        self._tokenizers = tokenizers
        self._settings = settings

    async def run(self, job: Job) -> None:
        """Register the worker; returns when it is in force, or the job has no say any more.

        Raises StepFailed.
        """
        subject = self._subject(job)
        lives = 0
        try:
            while True:
                lives += 1
                try:
                    await self._run(job.id, subject)
                    break
                except ConnectionBroke as broke:
                    subject.let_go()
                    if lives >= self._steps.tries(subject.worker()):
                        raise StepFailed(broke.failure) from None
                    await asyncio.sleep(self._steps.backoff_s(lives))
        except JobOver:
            return
        finally:
            subject.end()

    def _subject(self, job: Job) -> Subject:
        if self._pipeline.registry.wanted_of(job.worker_id) is None:
            return Newcomer(self._pipeline, self._fleet, job.id, job.worker_id)
        return Successor(self._pipeline, self._fleet, self._dialing, job.id, job.worker_id)

    async def _run(self, job_id: JobId, subject: Subject) -> None:
        client = await self._reaching.reach(job_id, subject)
        effective = await self._read_facts(job_id, subject, client)
        await self._check_pairing(job_id, subject)
        failure = await self._probe_bootstrap(job_id, subject, effective)
        await self._load_tokenizer(job_id, subject, client)
        worker = subject.worker()
        await self._steps.attempt(job_id, "activate", worker, lambda: self._probe(worker, client))
        await subject.activate(failure)

    async def _read_facts(self, job_id: JobId, subject: Subject, client: EngineClient) -> EffectiveFacts:
        worker, found = subject.worker(), _Found()
        timeout_s = self._probe_timeout_s(worker)

        async def describe() -> str:
            facts = await within(timeout_s, "reading facts", client.describe(timeout_s=timeout_s))
            port = self._settings.default_bootstrap_port
            found.effective = effective_facts(worker.spec, worker.url, facts, default_bootstrap_port=port)
            count = len(found.effective.ranks)
            return f"model {facts.model_id}, {count} rank{'' if count == 1 else 's'}"

        await self._steps.attempt(job_id, "read_facts", worker, describe)
        effective = found.effective
        assert effective is not None
        await subject.read(effective)
        return effective

    async def _check_pairing(self, job_id: JobId, subject: Subject) -> None:
        worker = subject.worker()
        claim = pairable(worker, self._fleet.workers().values())
        if claim is None:
            await self._steps.skip(job_id, "check_pairing", f"a {worker.worker_type} worker is not half of a pair")
            return
        await self._steps.begin(job_id, "check_pairing")
        await subject.claim(claim)
        await self._steps.end(job_id, "check_pairing", claim.message)

    async def _probe_bootstrap(self, job_id: JobId, subject: Subject, effective: EffectiveFacts) -> Failure | None:
        """None, or why the worker cannot be met: it is registered NOT_READY and probed until it can."""
        endpoint = effective.facts.bootstrap
        if endpoint is None:
            await self._steps.skip(job_id, "probe_bootstrap", "nobody knocks at this worker")
            return None
        await self._steps.begin(job_id, "probe_bootstrap")
        timeout_s = self._settings.jobs.connect_timeout_s
        where = f"bootstrap endpoint {endpoint.host}:{endpoint.port}"
        try:
            await within(
                timeout_s, where, self._dialer.probe_bootstrap(endpoint.host, endpoint.port, timeout_s=timeout_s)
            )
        except EngineFailure as error:
            failure = Failure(error.reason, f"{where}: {error.sentence}")
            await subject.claim(Condition("BOOTSTRAP_REACHABLE", False, failure.reason, failure.sentence, 0.0))
            await self._steps.end(job_id, "probe_bootstrap", f"{where} does not answer", failure, StepState.FAILED)
            return failure
        await subject.claim(Condition("BOOTSTRAP_REACHABLE", True, "REACHABLE", where, 0.0))
        await self._steps.end(job_id, "probe_bootstrap", where)
        return None

    async def _load_tokenizer(self, job_id: JobId, subject: Subject, client: EngineClient) -> None:
        await self._steps.begin(job_id, "load_tokenizer")
        claim, failure, is_loaded = await self._tokenizers.load(subject.worker(), client)
        await subject.claim(claim)
        if failure is not None:
            await self._steps.end(job_id, "load_tokenizer", "token ids only", failure, StepState.FAILED)
        elif is_loaded:
            await self._steps.end(job_id, "load_tokenizer", "loaded")
        else:
            detail = "already loaded" if claim.is_true else claim.message
            await self._steps.end(job_id, "load_tokenizer", detail, None, StepState.SKIPPED)

    async def _probe(self, worker: Worker, client: EngineClient) -> str:
        timeout_s = self._probe_timeout_s(worker)
        await within(timeout_s, "the probe", client.probe(timeout_s=timeout_s))
        return "the worker says it is serving"

    def _probe_timeout_s(self, worker: Worker) -> float:
        return health_settings(self._settings.health, worker.spec.health).timeout_s

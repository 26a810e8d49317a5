"""The jobs that make a worker reachable: reach it, read it, look whether it pairs, and put it in force.

REGISTER_WORKER does so for a newcomer, REPLACE_WORKER and UPDATE_WORKER for a changed spec. Every step, try and failure
is in the job's record while it runs. Waiting between tries holds no slot. The job may be cancelled at any await: until
the connection belongs to the fleet it is closed here, and what comes too late is refused by the core.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tandem_router.core.commands import BeginStep, EndStep
from tandem_router.errors import Reason
from tandem_router.model.failure import EngineFailure, Failure
from tandem_router.model.ids import JobId
from tandem_router.model.job import Job, StepState
from tandem_router.model.settings import RuntimeSettings
from tandem_router.model.worker import Condition, Worker
from tandem_router.ports import EngineClient, EngineDialer, Rng, TextCodecs
from tandem_router.runtime.deadline import within
from tandem_router.runtime.dialing import Dialing
from tandem_router.runtime.facts import EffectiveFacts, effective_facts
from tandem_router.runtime.fleet import WorkerFleet
from tandem_router.runtime.job_runner import JobRunner
from tandem_router.runtime.pairing import pairable
from tandem_router.runtime.pipeline import Pipeline
from tandem_router.runtime.subjects import JobOver, Newcomer, Subject, Successor
from tandem_router.runtime.tokenizers import load_tokenizer

__all__ = ["Registration", "StepFailed"]

_FINAL = frozenset({Reason.RUNTIME_NOT_DETECTED, Reason.RUNTIME_CANNOT_RETURN_CONTEXT_PARAMS})
"""Answers that no further try changes."""


class StepFailed(Exception):
    """A step gave up: the job fails with this."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.sentence)
        self.failure = failure


class _ConnectionBroke(Exception):
    """The connection ended in the middle of the job: begin again with another one."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.sentence)
        self.failure = failure


@dataclass(slots=True)
class _Found:
    """What the steps hand to each other."""

    client: EngineClient | None = None
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
        codecs: TextCodecs,
        rng: Rng,
        settings: RuntimeSettings,
    ) -> None:
        self._pipeline = pipeline
        self._fleet = fleet
        self._runner = runner
        self._dialing = dialing
        self._dialer = dialer
        self._codecs = codecs
        self._rng = rng
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
                except _ConnectionBroke as broke:
                    subject.let_go()
                    if lives >= self._tries(subject.worker()):
                        raise StepFailed(broke.failure) from None
                    await asyncio.sleep(self._backoff_s(lives))
        except JobOver:
            return
        finally:
            subject.end()

    def _subject(self, job: Job) -> Subject:
        if self._pipeline.registry.wanted_of(job.worker_id) is None:
            return Newcomer(self._pipeline, self._fleet, job.id, job.worker_id)
        return Successor(self._pipeline, self._fleet, self._dialing, job.id, job.worker_id)

    async def _run(self, job_id: JobId, subject: Subject) -> None:
        client = await self._connect(job_id, subject)
        await self._begin(job_id, "detect_runtime")
        effective = await self._read_facts(job_id, subject, client)
        await self._check_pairing(job_id, subject)
        failure = await self._probe_bootstrap(job_id, subject, effective)
        await self._load_tokenizer(job_id, subject, client)
        worker = subject.worker()
        await self._try(job_id, "activate", worker, lambda: self._probe(worker, client))
        await subject.activate(failure)

    async def _connect(self, job_id: JobId, subject: Subject) -> EngineClient:
        worker = subject.worker()
        found = _Found()

        async def dial() -> str:
            found.client = await self._dialing.dial(worker, job_id)
            return f"connected to {worker.url}"

        try:
            await self._try(job_id, "connect", worker, dial)
            client, found.client = found.client, None
            assert client is not None
            await subject.connected(client)
            return client
        finally:
            if found.client is not None:
                self._fleet.close_client(found.client)

    async def _read_facts(self, job_id: JobId, subject: Subject, client: EngineClient) -> EffectiveFacts:
        worker, found = subject.worker(), _Found()
        timeout_s = self._settings.health.timeout_s

        async def describe() -> str:
            facts = await within(timeout_s, "reading facts", client.describe(timeout_s=timeout_s))
            port = self._settings.default_bootstrap_port
            found.effective = effective_facts(worker.spec, worker.url, facts, default_bootstrap_port=port)
            return f"model {facts.model_id}, {len(found.effective.ranks)} ranks"

        # The connection already answers an engine protocol: dialling found it, or the operator stated it.
        stated = worker.spec.runtime_type
        await self._end(job_id, "detect_runtime", f"stated: {stated}" if stated is not None else "found while dialling")
        await self._try(job_id, "read_facts", worker, describe)
        effective = found.effective
        assert effective is not None
        await subject.read(effective)
        return effective

    async def _check_pairing(self, job_id: JobId, subject: Subject) -> None:
        worker = subject.worker()
        claim = pairable(worker, self._fleet.workers().values())
        if claim is None:
            await self._skip(job_id, "check_pairing", f"a {worker.worker_type} worker is not half of a pair")
            return
        await self._begin(job_id, "check_pairing")
        await subject.claim(claim)
        await self._end(job_id, "check_pairing", claim.message)

    async def _probe_bootstrap(self, job_id: JobId, subject: Subject, effective: EffectiveFacts) -> Failure | None:
        """None, or why the worker cannot be met: it is registered NOT_READY and probed until it can."""
        endpoint = effective.facts.bootstrap
        if endpoint is None:
            await self._skip(job_id, "probe_bootstrap", "nobody knocks at this worker")
            return None
        await self._begin(job_id, "probe_bootstrap")
        timeout_s = self._settings.jobs.connect_timeout_s
        where = f"bootstrap endpoint {endpoint.host}:{endpoint.port}"
        try:
            await within(
                timeout_s, where, self._dialer.probe_bootstrap(endpoint.host, endpoint.port, timeout_s=timeout_s)
            )
        except EngineFailure as error:
            failure = Failure(error.reason, f"{where}: {error.sentence}")
            await subject.claim(Condition("BOOTSTRAP_REACHABLE", False, failure.reason, failure.sentence, 0.0))
            await self._end(job_id, "probe_bootstrap", f"{where} does not answer", failure, StepState.FAILED)
            return failure
        await subject.claim(Condition("BOOTSTRAP_REACHABLE", True, "REACHABLE", where, 0.0))
        await self._end(job_id, "probe_bootstrap", where)
        return None

    async def _load_tokenizer(self, job_id: JobId, subject: Subject, client: EngineClient) -> None:
        await self._begin(job_id, "load_tokenizer")
        claim, failure, is_loaded = await load_tokenizer(subject.worker(), client, self._codecs)
        await subject.claim(claim)
        if failure is not None:
            await self._end(job_id, "load_tokenizer", "token ids only", failure, StepState.FAILED)
        elif is_loaded:
            await self._end(job_id, "load_tokenizer", "loaded")
        else:
            detail = "already loaded" if claim.is_true else claim.message
            await self._end(job_id, "load_tokenizer", detail, None, StepState.SKIPPED)

    async def _probe(self, worker: Worker, client: EngineClient) -> str:
        stated_s = worker.spec.health.timeout_s
        timeout_s = self._settings.health.timeout_s if stated_s is None else stated_s
        await within(timeout_s, "the probe", client.probe(timeout_s=timeout_s))
        return "the worker says it is serving"

    async def _try(self, job_id: JobId, step: str, worker: Worker, attempt: Callable[[], Awaitable[str]]) -> None:
        """Try a step up to max_connection_attempts times with exponential backoff.

        Raises StepFailed after the last try, and _ConnectionBroke when the connection of an earlier step has ended.
        """
        limit = self._tries(worker)
        for number in range(1, limit + 1):
            await self._begin(job_id, step)
            details: list[str] = []

            async def work(details: list[str] = details) -> None:
                details.append(await attempt())

            try:
                await self._runner.in_slot(work)
            except EngineFailure as error:
                failure = Failure(error.reason, error.sentence)
                if number == limit or error.reason in _FINAL:
                    await self._end(job_id, step, f"gave up after try {number} of {limit}", failure, StepState.FAILED)
                    raise StepFailed(failure) from None
                if error.connection_lost and step != "connect":
                    await self._end(job_id, step, "the connection broke; dialling again", failure, StepState.RUNNING)
                    raise _ConnectionBroke(failure) from None
                backoff_s = self._backoff_s(number)
                detail = f"try {number} of {limit} failed; next in {backoff_s:.2f} s"
                await self._end(job_id, step, detail, failure, StepState.RUNNING, backoff_s)
                await asyncio.sleep(backoff_s)
            else:
                await self._end(job_id, step, details[0])
                return

    def _tries(self, worker: Worker) -> int:
        stated = worker.spec.max_connection_attempts
        return max(1, self._settings.jobs.max_connection_attempts if stated is None else stated)

    def _backoff_s(self, number: int) -> float:
        """Doubles from the initial value up to the greatest; plus or minus a fifth, so that a fleet does not march."""
        jobs = self._settings.jobs
        # Exponents are capped so that an operator's million attempts do not overflow a float.
        plain_s = min(jobs.connect_backoff_max_s, jobs.connect_backoff_initial_s * 2.0 ** min(number - 1, 60))
        return plain_s * (0.8 + 0.4 * self._rng.random())

    async def _begin(self, job_id: JobId, step: str) -> None:
        if (await self._pipeline.submit(BeginStep(job_id, step))).is_stale:
            raise JobOver

    async def _end(
        self,
        job_id: JobId,
        step: str,
        detail: str,
        failure: Failure | None = None,
        state: StepState = StepState.SUCCEEDED,
        retry_in_s: float | None = None,
    ) -> None:
        if (await self._pipeline.submit(EndStep(job_id, step, state, detail, failure, retry_in_s))).is_stale:
            raise JobOver

    async def _skip(self, job_id: JobId, step: str, detail: str) -> None:
        await self._end(job_id, step, detail, None, StepState.SKIPPED)

"""Probing: one task per registered worker asks it again and again, and tells the registry what changes.

While a worker is READY its own connection is asked. Once that connection broke, a fresh one is dialled for every probe
until enough of them succeed; then the worker comes back as its next epoch on that connection, with facts read anew.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

from tandem_router.core.commands import MarkNotReady, MarkReady, Outcome, SetAdapters, SetConditions
from tandem_router.core.health import Health, HealthInput, HealthPhase, health_settings, step
from tandem_router.errors import Code, Reason, TandemError
from tandem_router.model.failure import EngineFailure, Failure
from tandem_router.model.ids import RankKey, WorkerId
from tandem_router.model.settings import HealthSettings, RuntimeSettings
from tandem_router.model.worker import Condition, Worker, WorkerStatus
from tandem_router.ports import EngineClient, EngineDialer, Rng
from tandem_router.runtime.deadline import within
from tandem_router.runtime.dialing import Dialing
from tandem_router.runtime.facts import EffectiveFacts, effective_facts
from tandem_router.runtime.fleet import WorkerFleet
from tandem_router.runtime.pipeline import Pipeline
from tandem_router.runtime.scope import TaskScope
from tandem_router.runtime.tokenizers import Tokenizers

__all__ = ["ProbeContext", "WorkerProbe"]

_RECOVERY_SHARE = 0.2
"""A worker that is NOT_READY is asked five times as often: a restarted process is wanted back soon."""
_DEEP_EVERY = 6
"""Every so many probes the facts and the bootstrap endpoint are looked at too: a process that was replaced between two
probes answers the second one as well as the first did."""
_KICK_FLOOR_S = 0.1
"""Failing legs ask for a probe at once; a storm of them gets at most ten per second."""


@dataclass(frozen=True, slots=True)
class ProbeContext:
    """What every probe works with."""

    pipeline: Pipeline
    fleet: WorkerFleet
    dialing: Dialing
    dialer: EngineDialer
    tokenizers: Tokenizers
    rng: Rng
    settings: RuntimeSettings
    scope: TaskScope


class WorkerProbe:
    """The health of one worker, from its activation until it is removed."""

    def __init__(self, context: ProbeContext, worker: Worker) -> None:
        self._context = context
        self._id: WorkerId = worker.id
        self._overrides = worker.spec.health
        standing = context.pipeline.registry.standing_of(worker.id)
        phase = HealthPhase.SERVING if standing is WorkerStatus.READY else HealthPhase.DOWN
        self._health = Health(worker.epoch, phase)
        self._candidate: EngineClient | None = None
        self._kick = asyncio.Event()
        self._checks = 0

    @property
    def _settings(self) -> HealthSettings:
        """Of the spec in effect: an update acts from the next probe on."""
        worker = self._context.pipeline.registry.worker(self._id)
        if worker is not None:
            self._overrides = worker.spec.health
        return health_settings(self._context.settings.health, self._overrides)

    @property
    def health(self) -> Health:
        """What the probe thinks now; the registry follows within one command."""
        return self._health

    def leg_failed(self, key: RankKey, failure: EngineFailure) -> None:
        """Passive health. A broken connection under a leg is certain; any other failure only asks for a probe now."""
        if failure.connection_lost:
            self._see(HealthInput.CONNECTION_LOST, key.epoch, _record(failure))
        self._kick.set()

    async def run(self) -> None:
        """Probe until cancelled."""
        try:
            while True:
                is_kicked = await self._wait()
                try:
                    await self._check(is_deep=is_kicked or self._checks % _DEEP_EVERY == _DEEP_EVERY - 1)
                except TandemError as error:
                    if error.reason is Reason.DRAINING:
                        return  # the control loop is closing
                    self._tell(error)
                except Exception as fault:
                    self._tell(fault)  # a fault of ours must not end the probing of a worker for ever
                self._checks += 1
        finally:
            self._drop_candidate()

    def _tell(self, fault: Exception) -> None:
        message = f"probing worker {self._id} failed"
        asyncio.get_running_loop().call_exception_handler({"message": message, "exception": fault})

    async def _wait(self) -> bool:
        """Sleep until the next probe is due; True when a failing leg asked for it."""
        await asyncio.sleep(_KICK_FLOOR_S)
        is_ready = self._health.phase.is_ready
        delay_s: float | None = self._settings.check_interval_s * (1.0 if is_ready else _RECOVERY_SHARE)
        if is_ready and self._overrides.is_disabled:
            delay_s = None
        elif delay_s is not None:
            delay_s = max(0.0, delay_s * (0.9 + 0.2 * self._context.rng.random()) - _KICK_FLOOR_S)
        was_ready = is_ready
        try:
            async with asyncio.timeout(delay_s):
                await self._kick.wait()
        except TimeoutError:
            return False
        self._kick.clear()
        # The kick that brought the news of a broken connection has been used up by it.
        return was_ready

    async def _check(self, *, is_deep: bool) -> None:
        epoch = self._health.epoch
        try:
            if self._health.was_lost:
                await self._probe_anew()
            else:
                await self._probe_open(is_deep)
        except EngineFailure as failure:
            self._drop_candidate()
            was_ready = self._health.phase.is_ready
            seen = HealthInput.CONNECTION_LOST if failure.connection_lost else HealthInput.PROBE_FAILED
            self._see(seen, epoch, _record(failure))
            if not was_ready:
                await self._report(MarkNotReady(self._id, epoch, _record(failure)))
            return
        before = self._health
        after = step(before, HealthInput.PROBE_OK, epoch, self._settings)
        if after.phase.is_ready and not before.phase.is_ready:
            await self._revive(before)
        else:
            self._health = after

    async def _probe_open(self, is_deep: bool) -> None:
        """Ask over the worker's own connection."""
        worker, client = self._worker(), self._context.fleet.client(RankKey(self._id, self._health.epoch, 0))
        if client is None:
            raise EngineFailure(Reason.WORKER_UNREACHABLE, "no connection is open", connection_lost=True)
        timeout_s = self._settings.timeout_s
        try:
            await within(timeout_s, "the probe", client.probe(timeout_s=timeout_s))
        except EngineFailure as failure:
            is_late = failure.code is Code.DEADLINE_EXCEEDED and not failure.connection_lost
            if not (is_late and self._health.phase.is_ready and self._works(client)):
                raise
            return  # a long prefill keeps the health check waiting, not the other streams
        if not is_deep or worker.facts is None:
            return
        found = await within(timeout_s, "reading facts", client.describe(timeout_s=timeout_s))
        if found.instance != worker.facts.instance:
            sentence = f"another process answers: instance {found.instance}, was {worker.facts.instance}"
            raise EngineFailure(Reason.WORKER_LOST, sentence, connection_lost=True)
        if found.adapters != worker.facts.adapters:
            await self._context.pipeline.submit(SetAdapters(self._id, worker.epoch, found.adapters))
        if worker.facts.bootstrap is not None:
            await self._probe_bootstrap(worker.facts.bootstrap.host, worker.facts.bootstrap.port)

    def _works(self, client: EngineClient) -> bool:
        """Whether the engine itself, not only its process, has shown within the last interval that it works."""
        seen_s = client.last_sign_of_life_s
        if seen_s is None:
            return False
        recent_s = max(self._settings.check_interval_s, self._settings.timeout_s)
        return asyncio.get_running_loop().time() - seen_s <= recent_s

    async def _probe_anew(self) -> None:
        """Ask over a fresh connection, kept for the next probe as long as it answers."""
        if self._candidate is None:
            self._candidate = await self._context.dialing.dial(self._worker())
        timeout_s = self._settings.timeout_s
        await within(timeout_s, "the probe", self._candidate.probe(timeout_s=timeout_s))

    async def _probe_bootstrap(self, host: str, port: int) -> None:
        """Knock at the bootstrap endpoint and keep the claim about it; its EngineFailure never says connection_lost."""
        timeout_s, epoch = self._settings.timeout_s, self._health.epoch
        where = f"bootstrap endpoint {host}:{port}"
        try:
            await within(timeout_s, where, self._context.dialer.probe_bootstrap(host, port, timeout_s=timeout_s))
        except EngineFailure as failure:
            sentence = f"{where}: {failure.sentence}"
            claim = Condition("BOOTSTRAP_REACHABLE", False, failure.reason, sentence, 0.0)
            await self._context.pipeline.submit(SetConditions(self._id, epoch, (claim,)))
            raise EngineFailure(failure.reason, sentence, code=failure.code) from None

    def _see(self, seen: HealthInput, epoch: int, failure: Failure) -> None:
        """Take bad news in; the registry hears of it when it ends the worker's readiness."""
        before = self._health
        self._health = step(before, seen, epoch, self._settings)
        if before.phase.is_ready and not self._health.phase.is_ready and not self._context.scope.is_closed:
            self._context.scope.spawn(self._report(MarkNotReady(self._id, epoch, failure)), f"not ready {self._id}")

    async def _report(self, command: MarkNotReady) -> None:
        try:
            await self._context.pipeline.submit(command)
        except TandemError as error:
            if error.reason is not Reason.DRAINING:
                raise

    async def _revive(self, before: Health) -> None:
        """Enough probes were good: read the worker anew and make it READY, in a new epoch where it is another life."""
        worker = self._worker()
        candidate = self._candidate
        client = candidate or self._context.fleet.client(RankKey(self._id, before.epoch, 0))
        if client is None:
            self._health = Health(before.epoch, HealthPhase.LOST, 0, True)
            return
        try:
            effective, conditions = await self._read(worker, client, is_new_life=candidate is not None)
        except EngineFailure as failure:
            self._drop_candidate()
            self._health = step(self._health, HealthInput.PROBE_FAILED, before.epoch, self._settings)
            await self._report(MarkNotReady(self._id, before.epoch, _record(failure)))
            return
        if self._health is not before:
            return  # bad news came in while we read
        was = worker.facts
        if candidate is None and was is not None and was.instance != effective.facts.instance:
            # The old connection reached another process by itself: begin that life on a connection of its own.
            self._health = Health(before.epoch, HealthPhase.LOST, 0, True)
            return
        await self._go_ready(before.epoch, candidate, effective, conditions)

    async def _go_ready(
        self, epoch: int, candidate: EngineClient | None, effective: EffectiveFacts, conditions: tuple[Condition, ...]
    ) -> None:
        fleet = self._context.fleet
        is_new_life = candidate is not None
        self._candidate = None

        def settle(outcome: Outcome | None) -> None:
            # Where it is stale the worker is gone or has another life: nothing of this one exists.
            if outcome is None or outcome.is_stale:
                self._health = Health(epoch, HealthPhase.LOST, 0, True)
                if candidate is not None:
                    fleet.close_client(candidate)
                return
            self._health = Health(epoch + 1 if is_new_life else epoch)
            if candidate is not None:
                fleet.adopt(self._id, epoch + 1, candidate)
                fleet.discard(self._id, epoch)

        await self._context.pipeline.submit(
            MarkReady(self._id, epoch, effective.facts, effective.ranks, is_new_life, conditions), settle
        )

    async def _read(
        self, worker: Worker, client: EngineClient, *, is_new_life: bool
    ) -> tuple[EffectiveFacts, tuple[Condition, ...]]:
        """Facts, the bootstrap endpoint and the tokenizer of a worker that comes back; raises EngineFailure."""
        timeout_s = self._settings.timeout_s
        found = await within(timeout_s, "reading facts", client.describe(timeout_s=timeout_s))
        effective = effective_facts(
            worker.spec, worker.url, found, default_bootstrap_port=self._context.settings.default_bootstrap_port
        )
        conditions = [Condition("CONNECTED", True, "CONNECTED", "", 0.0), effective.agreement]
        endpoint = effective.facts.bootstrap
        if endpoint is not None:
            await self._probe_bootstrap(endpoint.host, endpoint.port)
            where = f"bootstrap endpoint {endpoint.host}:{endpoint.port}"
            conditions.append(Condition("BOOTSTRAP_REACHABLE", True, "REACHABLE", where, 0.0))
        tokenizer = next((claim for claim in worker.conditions if claim.type == "TOKENIZER" and claim.is_true), None)
        if is_new_life or tokenizer is None:
            tokenizer, _, _ = await self._context.tokenizers.load(_with(worker, effective), client)
        return effective, (*conditions, tokenizer)

    def _worker(self) -> Worker:
        worker = self._context.pipeline.registry.worker(self._id)
        if worker is None:
            raise asyncio.CancelledError  # removed; this task's own cancel is on its way
        return worker

    def _drop_candidate(self) -> None:
        candidate, self._candidate = self._candidate, None
        if candidate is not None:
            self._context.fleet.close_client(candidate)


def _with(worker: Worker, effective: EffectiveFacts) -> Worker:
    return replace(worker, facts=effective.facts, ranks=effective.ranks)


def _record(failure: EngineFailure) -> Failure:
    return Failure(failure.reason, failure.sentence)

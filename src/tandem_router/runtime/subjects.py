"""What a registration works on.

A newcomer is shown by the registry from step to step; of the successor of a worker that serves nothing is shown until
it takes the old one's place, all at once.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from tandem_router.core.commands import Activate, ActivateSuccessor, Connect, Outcome, RecordFacts, SetConditions
from tandem_router.model.failure import Failure
from tandem_router.model.ids import JobId, WorkerId
from tandem_router.model.job import JobState
from tandem_router.model.worker import Condition, Worker
from tandem_router.ports import EngineClient
from tandem_router.runtime.dialing import Dialing
from tandem_router.runtime.facts import EffectiveFacts
from tandem_router.runtime.fleet import WorkerFleet
from tandem_router.runtime.pipeline import Pipeline, Settle

__all__ = ["JobOver", "Newcomer", "Subject", "Successor"]


class JobOver(Exception):
    """The job's record has ended under us, or nobody wants its outcome any more: stop without a word."""


class Subject(Protocol):
    """The worker of a registration. Every method raises JobOver when the job has no say any more."""

    def worker(self) -> Worker:
        """As the steps see it: under the spec that is tried, with what was found so far."""

    async def connected(self, client: EngineClient) -> None:
        """Take a connection over, whatever comes of it."""

    async def read(self, effective: EffectiveFacts) -> None:
        """Keep what was found."""

    async def claim(self, claim: Condition) -> None:
        """Keep a claim."""

    async def activate(self, failure: Failure | None) -> None:
        """Put it in force: READY, or NOT_READY for the reason given."""

    def let_go(self) -> None:
        """Close a connection that has not been put in force; idempotent."""

    def end(self) -> None:
        """The job is over, however it ended."""


class Newcomer:
    """A worker that does not serve yet: every finding goes to the registry at once."""

    def __init__(self, pipeline: Pipeline, fleet: WorkerFleet, job_id: JobId, worker_id: WorkerId) -> None:
        self._pipeline = pipeline
        self._fleet = fleet
        self._job_id = job_id
        self._worker_id = worker_id
        self._epoch = 0

    def worker(self) -> Worker:
        """As the registry has it."""
        worker = self._pipeline.registry.worker(self._worker_id)
        if worker is None:
            raise JobOver
        return worker

    async def connected(self, client: EngineClient) -> None:
        """The worker's next epoch begins on this connection."""

        def settle(outcome: Outcome | None) -> None:
            if outcome is None or outcome.is_stale or outcome.worker is None:
                self._fleet.close_client(client)
            else:
                self._epoch = outcome.worker.epoch
                self._fleet.adopt(self._worker_id, self._epoch, client)

        command = Connect(self._worker_id, self._epoch_now(client), self._job_id)
        if (await self._pipeline.submit(command, settle)).is_stale:
            raise JobOver

    async def read(self, effective: EffectiveFacts) -> None:
        """Facts of the present epoch."""
        command = RecordFacts(self._worker_id, self._epoch, effective.facts, effective.ranks, (effective.agreement,))
        if (await self._pipeline.submit(command)).is_stale:
            raise JobOver

    async def claim(self, claim: Condition) -> None:
        """A claim about the present epoch."""
        await self._pipeline.submit(SetConditions(self._worker_id, self._epoch, (claim,)))

    async def activate(self, failure: Failure | None) -> None:
        """It gets requests from now on, or is probed until it can."""
        if (await self._pipeline.submit(Activate(self._worker_id, self._job_id, failure))).is_stale:
            raise JobOver

    def let_go(self) -> None:
        """The connection of the epoch that this registration began."""
        self._fleet.discard(self._worker_id, self._epoch)

    def end(self) -> None:
        """Its connection belongs to the fleet, which closes it with the worker or with the next life."""

    def _epoch_now(self, client: EngineClient) -> int:
        try:
            return self.worker().epoch
        except JobOver:
            self._fleet.close_client(client)
            raise


class Successor:
    """The wanted spec of a worker that serves: findings are kept here until it takes over."""

    def __init__(
        self, pipeline: Pipeline, fleet: WorkerFleet, dialing: Dialing, job_id: JobId, worker_id: WorkerId
    ) -> None:
        self._pipeline = pipeline
        self._fleet = fleet
        self._dialing = dialing
        self._job_id = job_id
        self._worker_id = worker_id
        self._client: EngineClient | None = None
        self._effective: EffectiveFacts | None = None
        self._claims: dict[str, Condition] = {}
        self._is_over = False

    def worker(self) -> Worker:
        """The old one under the wanted spec, without what was found under the old spec."""
        registry = self._pipeline.registry
        worker, job, wanted = (
            registry.worker(self._worker_id),
            registry.jobs.get(self._job_id),
            registry.wanted_of(self._worker_id),
        )
        if worker is None or wanted is None or wanted.job_id != self._job_id:
            raise JobOver
        if job is None or job.state is not JobState.RUNNING or job.cancel is not None:
            raise JobOver
        found = self._effective
        return replace(
            worker,
            spec=wanted.spec,
            facts=None if found is None else found.facts,
            ranks=() if found is None else found.ranks,
            conditions=tuple(self._claims.values()),
        )

    async def connected(self, client: EngineClient) -> None:
        """Nobody uses it until it takes over."""
        self.let_go()
        self._client = client

    async def read(self, effective: EffectiveFacts) -> None:
        """What the wanted spec makes of the engine's answers."""
        self._effective = effective
        await self.claim(effective.agreement)

    async def claim(self, claim: Condition) -> None:
        """Shown once it has taken over."""
        self._claims[claim.type] = claim

    async def activate(self, failure: Failure | None) -> None:
        """Take over as the next epoch; legs on the old one go on to their end on its connection."""
        while True:
            seen_epoch = self.worker().epoch
            client, found = self._client, self._effective
            assert client is not None, "activation follows connecting"
            assert found is not None, "activation follows reading"
            self._client = None
            command = ActivateSuccessor(
                self._worker_id,
                self._job_id,
                seen_epoch,
                found.facts,
                found.ranks,
                tuple(self._claims.values()),
                failure,
            )
            outcome = await self._pipeline.submit(command, self._settle(client))
            if not outcome.is_stale:
                return
            if self.worker().epoch == seen_epoch:
                raise JobOver
            # The old one came back as another life just now; this one takes over from that.

    def _settle(self, client: EngineClient) -> Settle:
        def settle(outcome: Outcome | None) -> None:
            if outcome is not None and not outcome.is_stale and outcome.worker is not None:
                self._dialing.promote(self._worker_id, self._job_id)
                self._fleet.adopt(self._worker_id, outcome.worker.epoch, client)
            elif outcome is None or self._is_over:
                self._fleet.close_client(client)
            else:
                self._client = client

        return settle

    def let_go(self) -> None:
        """The connection that has not taken over."""
        client, self._client = self._client, None
        if client is not None:
            self._fleet.close_client(client)

    def end(self) -> None:
        """Let go for good."""
        self._is_over = True
        self.let_go()

"""What operators have engines do: one path for every kind of operation, side by side on the workers selected.

An operation is one rpc to an engine and lasts as long as the caller waits (docs/adr/0007); nothing is kept of it here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

from tandem_router.errors import Code, Reason, TandemError
from tandem_router.model.failure import EngineFailure, Failure
from tandem_router.model.ids import WorkerId
from tandem_router.model.operations import FlushCache, Operation, StopProfile
from tandem_router.model.selection import WorkerOutcome, WorkerSelection
from tandem_router.model.worker import Worker, WorkerStatus
from tandem_router.policies.plan import unknown_model
from tandem_router.ports import Clock, EngineClient, Fleet
from tandem_router.runtime.together import run_together

__all__ = ["Operations", "Piece", "refuse_all_failed", "selected"]

DEFAULT_TIMEOUT_S = 60.0
"""Of an operation whose caller set no deadline."""
STOP_PROFILE_TIMEOUT_S = 600.0
"""The same where traces are written: a minute of a large model's steps takes engines several minutes."""
MAX_AT_ONCE = 32
"""Engines that one call works on at a time."""
_LEAST_S = 0.001
"""With less left, an engine is not asked any more: it might do what nobody waits for."""
_LATE_FROM_S = 0.1
"""Engines round deadlines: one that ends this much early is still the caller's."""
_ANSWER_SHARE, _ANSWER_MOST_S = 0.1, 0.25
"""What is kept of a caller's deadline so that the outcomes reach it before it gives up."""

Piece = Callable[[Worker, EngineClient, float], Awaitable[str]]
"""The work on one worker within so many seconds; returns the engine's words. Raises EngineFailure and TandemError."""


class Operations:
    """Carries operations out. Stateless, so calls do not wait for each other."""

    def __init__(self, fleet: Fleet, clock: Clock) -> None:
        self.fleet = fleet
        self._clock = clock

    async def carry_out(
        self, operation: Operation, selection: WorkerSelection, deadline_s: float | None
    ) -> tuple[WorkerOutcome, ...]:
        """One outcome per selected worker, in the order of the selection.

        deadline_s: on the router's monotonic clock; None = the operation's own limit. Raises what `selected` and
        `refuse_all_failed` raise.
        """

        async def piece(_: Worker, client: EngineClient, timeout_s: float) -> str:
            return (await client.operate(operation, timeout_s=timeout_s)).message

        limit_s = self.limit_s(deadline_s, own_limit_s(operation))
        outcomes = await self.on_each(selected(selection, self.fleet.workers()), piece, limit_s)
        refuse_all_failed(outcomes)
        return outcomes

    def limit_s(self, deadline_s: float | None, own_s: float) -> float:
        """Seconds that engines have: until shortly before the caller's deadline, else `own_s`."""
        if deadline_s is None:
            return own_s
        left_s = max(0.0, deadline_s - self._clock.monotonic_s())
        return left_s - min(_ANSWER_MOST_S, left_s * _ANSWER_SHARE)

    async def on_each(self, workers: Sequence[Worker], piece: Piece, timeout_s: float) -> tuple[WorkerOutcome, ...]:
        """Run the piece on every READY worker, MAX_AT_ONCE at a time; outcomes in the order of the workers.

        timeout_s: of all together. What a piece raises is its worker's outcome; the caller's leaving cancels all.
        """
        outcomes: dict[WorkerId, WorkerOutcome] = {}
        turns = asyncio.Semaphore(MAX_AT_ONCE)
        ends_s = self._clock.monotonic_s() + timeout_s

        async def run(worker: Worker) -> None:
            async with turns:
                outcomes[worker.id] = await self._outcome(worker, piece, ends_s - self._clock.monotonic_s())

        await run_together([run(worker) for worker in workers], "operation")
        return tuple(outcomes[worker.id] for worker in workers)

    async def _outcome(self, worker: Worker, piece: Piece, timeout_s: float) -> WorkerOutcome:
        if worker.status is not WorkerStatus.READY:
            return _failed(worker, Reason.NO_READY_WORKER, f"its status is {worker.status}")
        client = self.fleet.client(worker.rank_key(0))
        if client is None:
            return _failed(worker, Reason.WORKER_LOST, "its connection is being replaced")
        if timeout_s < _LEAST_S:
            return _failed(
                worker, Reason.TOTAL_TIMEOUT, f"the time was up before its turn came; {MAX_AT_ONCE} at a time"
            )
        late = f"no answer within {timeout_s:.3g} s"
        ends_s = self._clock.monotonic_s() + timeout_s
        try:
            # The body keeps the limit too and says more of what it waited for; this one trusts nobody.
            async with asyncio.timeout(timeout_s):
                return WorkerOutcome(worker.id, await piece(worker, client, timeout_s))
        except TimeoutError:
            return _failed(worker, Reason.TOTAL_TIMEOUT, late)
        except EngineFailure as failure:
            if failure.connection_lost:
                self.fleet.leg_failed(worker.rank_key(0), failure)  # news of the worker, whatever was asked of it
            # An engine may give up by a limit of its own: that is its failure, and not the caller's deadline.
            is_late = failure.code is Code.DEADLINE_EXCEEDED and self._clock.monotonic_s() >= ends_s - _LATE_FROM_S
            reason = Reason.TOTAL_TIMEOUT if is_late else failure.reason
            return WorkerOutcome(worker.id, failure=Failure(reason, failure.sentence, field=failure.field))
        except TandemError as error:
            return WorkerOutcome(worker.id, failure=Failure.of(error))


def own_limit_s(operation: Operation) -> float:
    """Seconds that an operation may take where its caller says nothing."""
    if isinstance(operation, StopProfile):
        return STOP_PROFILE_TIMEOUT_S
    return DEFAULT_TIMEOUT_S + (operation.wait_idle_s if isinstance(operation, FlushCache) else 0.0)


def selected(selection: WorkerSelection, workers: Mapping[WorkerId, Worker]) -> tuple[Worker, ...]:
    """The workers that are meant; named ones in the order of their names, READY or not.

    Raises TandemError: WORKER_NOT_FOUND, MODEL_NOT_FOUND, NO_READY_WORKER where none of them is READY.
    """
    if selection.worker_ids:
        chosen = tuple(_known(worker_id, workers) for worker_id in selection.worker_ids)
        what = "none of the selected workers"
    else:
        serving = [worker for worker in workers.values() if worker.serves(selection.model)]
        if not serving:
            raise unknown_model(selection.model, workers).to_error()
        chosen = tuple(worker for worker in serving if worker.status is WorkerStatus.READY)
        what = f"no worker of {selection.model}"
    if not any(worker.status is WorkerStatus.READY for worker in chosen):
        raise TandemError(Reason.NO_READY_WORKER, f"{what} is READY", field="workers")
    return chosen


def refuse_all_failed(outcomes: Sequence[WorkerOutcome]) -> None:
    """Raise the first worker's failure where every worker failed, with the worker's id and how many they were."""
    failures = [(outcome.worker_id, outcome.failure) for outcome in outcomes if outcome.failure is not None]
    if not failures or len(failures) < len(outcomes):
        return
    worker_id, failure = failures[0]
    others = f", and all of {len(failures)} workers failed" if len(failures) > 1 else ""
    metadata = {**failure.metadata, "worker_id": worker_id, "failed_workers": str(len(failures))}
    raise TandemError(
        failure.reason, f"worker {worker_id}: {failure.sentence}{others}", field=failure.field, metadata=metadata
    )


def _known(worker_id: WorkerId, workers: Mapping[WorkerId, Worker]) -> Worker:
    worker = workers.get(worker_id)
    if worker is None:
        sentence, metadata = f"no worker has the id {worker_id}", {"worker_id": worker_id}
        raise TandemError(Reason.WORKER_NOT_FOUND, sentence, field="workers.worker_ids", metadata=metadata)
    return worker


def _failed(worker: Worker, reason: Reason, sentence: str) -> WorkerOutcome:
    return WorkerOutcome(worker.id, failure=Failure(reason, sentence))

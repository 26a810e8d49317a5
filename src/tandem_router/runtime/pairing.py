"""The PAIRABLE condition: whether a prefill or decode worker fits any worker of the other side, and if not, why."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

from tandem_router.core.commands import SetConditions
from tandem_router.errors import Reason, TandemError
from tandem_router.model.ids import WorkerId
from tandem_router.model.spec import WorkerType
from tandem_router.model.worker import Condition, Worker, WorkerStatus
from tandem_router.policies.compatibility import incompatibility
from tandem_router.runtime.pipeline import Pipeline
from tandem_router.runtime.scope import TaskScope

__all__ = ["Pairings", "pairable"]

_OTHER_SIDE = {WorkerType.PREFILL: WorkerType.DECODE, WorkerType.DECODE: WorkerType.PREFILL}
_LEAVING = (WorkerStatus.FAILED, WorkerStatus.DRAINING, WorkerStatus.GONE)
_TURN = 64
"""Workers looked at before others get a turn of the loop: some tens of microseconds each."""


def pairable(worker: Worker, workers: Iterable[Worker]) -> Condition | None:
    """The claim about `worker` among `workers` (itself may be among them), or None for one that is not half of a pair.

    Peers count when their facts are known and they are not leaving; whether they are READY just now does not matter.
    """
    other_side = _OTHER_SIDE.get(worker.worker_type)
    if other_side is None:
        return None
    return _claim(worker, other_side, (peer for peer in workers if _is_peer(peer, worker, other_side)))[0]


def _is_peer(peer: Worker, worker: Worker, other_side: WorkerType) -> bool:
    is_known = peer.facts is not None and peer.status not in _LEAVING
    return is_known and peer.worker_type is other_side and peer.id != worker.id


def _claim(worker: Worker, other_side: WorkerType, peers: Iterable[Worker]) -> tuple[Condition, WorkerId | None]:
    """The claim, and the peer that it rests on: the first that fits, else the first that does not."""
    refused: tuple[Condition, WorkerId] | None = None
    for peer in peers:
        prefill, decode = (worker, peer) if other_side is WorkerType.DECODE else (peer, worker)
        refusal = incompatibility(prefill, decode)
        if refusal is None:
            # One is enough, and naming or counting them would change the claim with every worker that comes or goes.
            return Condition("PAIRABLE", True, "PAIRABLE", f"fits a {other_side.lower()} worker", 0.0), peer.id
        if refused is None:
            message = f"with worker {peer.id}: {refusal.sentence}"
            refused = Condition("PAIRABLE", False, refusal.reason, message, 0.0), peer.id
    if refused is not None:
        return refused
    return Condition("PAIRABLE", False, "NO_PEER", f"no {other_side.lower()} worker is registered", 0.0), None


class Pairings:
    """Keeps every PAIRABLE claim true. A change of one worker concerns that worker, those whose claim rests on it, and
    those that fit nobody yet; the others are not looked at, so n workers that come cost n looks each at most.
    """

    def __init__(self, pipeline: Pipeline, scope: TaskScope) -> None:
        self._pipeline = pipeline
        self._scope = scope
        self._changed: dict[WorkerId, None] = {}
        self._rests_on: dict[WorkerId, WorkerId] = {}
        self._paired: dict[WorkerId, None] = {}
        self._task: asyncio.Task[None] | None = None

    def changed(self, worker_id: WorkerId) -> None:
        """The worker came, left, or is another one; returns at once."""
        self._changed[worker_id] = None
        if (self._task is None or self._task.done()) and not self._scope.is_closed:
            self._task = self._scope.spawn(self._run(), "pairing")

    async def _run(self) -> None:
        try:
            while self._changed:
                changed_id = next(iter(self._changed))
                del self._changed[changed_id]
                await self._settle(changed_id)
        except TandemError as error:
            if error.reason is not Reason.DRAINING:
                raise

    async def _settle(self, changed_id: WorkerId) -> None:
        workers = self._pipeline.registry.workers()
        changed = workers.get(changed_id)
        if changed is None:
            self._rests_on.pop(changed_id, None)
            self._paired.pop(changed_id, None)
        else:
            await self._look(changed, workers)
        looks = 0
        for worker in workers.values():
            if worker.id != changed_id and self._is_concerned(worker, changed_id, changed):
                await self._look(worker, workers)
                looks += 1
                if looks % _TURN == 0:
                    await asyncio.sleep(0)

    def _is_concerned(self, worker: Worker, changed_id: WorkerId, changed: Worker | None) -> bool:
        if self._rests_on.get(worker.id) == changed_id:
            return True
        other_side = _OTHER_SIDE.get(worker.worker_type)
        if other_side is None or changed is None or worker.id in self._paired or worker.facts is None:
            return False
        if not _is_peer(changed, worker, other_side):
            return False
        claim, _ = _claim(worker, other_side, (changed,))
        return claim.is_true or worker.id not in self._rests_on

    async def _look(self, worker: Worker, workers: Mapping[WorkerId, Worker]) -> None:
        """Work a claim out and have it kept where it is news."""
        other_side = _OTHER_SIDE.get(worker.worker_type)
        if worker.facts is None or other_side is None:
            self._rests_on.pop(worker.id, None)
            self._paired.pop(worker.id, None)
            return
        peers = (peer for peer in workers.values() if _is_peer(peer, worker, other_side))
        claim, rests_on = _claim(worker, other_side, peers)
        if rests_on is None:
            self._rests_on.pop(worker.id, None)
        else:
            self._rests_on[worker.id] = rests_on
        if claim.is_true:
            self._paired[worker.id] = None
        else:
            self._paired.pop(worker.id, None)
        shown = next((old for old in worker.conditions if old.type == claim.type), None)
        if shown is None or (shown.reason, shown.message) != (claim.reason, claim.message):
            await self._pipeline.submit(SetConditions(worker.id, worker.epoch, (claim,)))

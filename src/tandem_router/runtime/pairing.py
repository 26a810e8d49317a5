"""The PAIRABLE condition: whether a prefill or decode worker fits any worker of the other side, and if not, why."""

from __future__ import annotations

from collections.abc import Iterable

from tandem_router.model.spec import WorkerType
from tandem_router.model.worker import Condition, Worker, WorkerStatus
from tandem_router.policies.compatibility import incompatibility

__all__ = ["pairable"]

_OTHER_SIDE = {WorkerType.PREFILL: WorkerType.DECODE, WorkerType.DECODE: WorkerType.PREFILL}


def pairable(worker: Worker, workers: Iterable[Worker]) -> Condition | None:
    """The claim about `worker` among `workers` (itself may be among them), or None for one that is not half of a pair.

    Peers count when their facts are known and they are not leaving; whether they are READY just now does not matter.
    """
    other_side = _OTHER_SIDE.get(worker.worker_type)
    if other_side is None:
        return None
    leaving = (WorkerStatus.FAILED, WorkerStatus.DRAINING, WorkerStatus.GONE)
    peers = [
        peer
        for peer in workers
        if peer.worker_type is other_side and peer.facts is not None and peer.status not in leaving
    ]
    if not peers:
        return Condition("PAIRABLE", False, "NO_PEER", f"no {other_side.lower()} worker is registered", 0.0)
    refusals = []
    for peer in peers:
        prefill, decode = (worker, peer) if other_side is WorkerType.DECODE else (peer, worker)
        refusal = incompatibility(prefill, decode)
        if refusal is None:
            # One is enough, and naming or counting them would change the claim with every worker that comes or goes.
            return Condition("PAIRABLE", True, "PAIRABLE", f"fits a {other_side.lower()} worker", 0.0)
        refusals.append((peer.id, refusal))
    peer_id, first = refusals[0]
    return Condition("PAIRABLE", False, first.reason, f"with worker {peer_id}: {first.sentence}", 0.0)

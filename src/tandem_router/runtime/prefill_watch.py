"""Where decode would wait for ever on a prefill worker that is gone, the router notices for it.

A handoff's prefill leg has ended before decode fetches its blocks, so no call of ours breaks when the prefill process
dies in between. Some connectors fail such a decode within seconds; others let it wait for minutes
(`Handshake.decode_outwaits_prefill`). For those the worker's health stands in: probes see a dead process within
`health.check_interval_s`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tandem_router.errors import Reason
from tandem_router.model.failure import Failure
from tandem_router.model.ids import RankKey
from tandem_router.model.worker import Worker
from tandem_router.runtime.relay_environment import RelayEnvironment

__all__ = ["PrefillWatch", "is_over", "loss_of"]

_LOOK_EVERY_S = 1.0
"""Most transfers are over long before the first look."""


def is_over(env: RelayEnvironment, key: RankKey) -> bool:
    """Whether that life of the worker has ended for certain: it is removed, or another life has begun."""
    worker = env.fleet.workers().get(key.worker_id)
    return worker is None or worker.epoch != key.epoch


def loss_of(env: RelayEnvironment, prefill: RankKey, *, since_s: float, instance: str = "") -> Failure | None:
    """What is told of a prefill worker whose blocks can no longer be fetched, or None.

    since_s: wall clock. A worker that stopped serving before, and has answered since, was merely busy.
    instance: of the process that holds the blocks, where it is known. An epoch also ends when the connection alone is
    made anew, as for a new certificate; the same process still has them.
    """
    worker = env.fleet.workers().get(prefill.worker_id)
    if worker is not None and (worker.epoch == prefill.epoch or (instance and _instance(worker) == instance)):
        serving = next((claim for claim in worker.conditions if claim.type == "SERVING"), None)
        if serving is None or serving.is_true or serving.changed_at_s < since_s:
            return None
    where = {"leg": "prefill", "worker_id": prefill.worker_id, "dp_rank": str(prefill.dp_rank)}
    sentence = f"prefill worker {prefill.worker_id} was lost before its blocks were fetched"
    return Failure(Reason.KV_TRANSFER_FAILED, sentence, where)


def _instance(worker: Worker) -> str:
    return "" if worker.facts is None else worker.facts.instance or ""


class PrefillWatch:
    """Looks after the prefill worker of one decode leg until stopped; tells of its loss once."""

    def __init__(self, env: RelayEnvironment, prefill: RankKey, tell: Callable[[Failure], None]) -> None:
        self._env = env
        self._prefill = prefill
        self._tell = tell
        self._since_s = env.clock.wall_s()
        worker = env.fleet.workers().get(prefill.worker_id)
        self._instance = "" if worker is None or worker.epoch != prefill.epoch else _instance(worker)
        self._arm()

    def stop(self) -> None:
        """Look no more; idempotent."""
        self._timer.cancel()

    def _arm(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_LOOK_EVERY_S, self._look)

    def _look(self) -> None:
        loss = loss_of(self._env, self._prefill, since_s=self._since_s, instance=self._instance)
        if loss is None:
            self._arm()
        else:
            self._tell(loss)

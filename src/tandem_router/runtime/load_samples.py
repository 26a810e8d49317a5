"""Engines' own load, read when somebody asks for it and not more often than stated.

A sample belongs to one life of a worker, as long as it is READY: a dead vLLM engine still answers, with zeros or with
its last figures. An engine that says nothing, or leaves a rank out, has no load to be shown: an older sample would be
taken for the present one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tandem_router.model.failure import EngineFailure
from tandem_router.model.ids import RankKey
from tandem_router.model.settings import LoadSettings
from tandem_router.model.worker import Rank, RankLoad, Worker, WorkerStatus
from tandem_router.ports import Clock, Fleet
from tandem_router.runtime.deadline import within
from tandem_router.runtime.together import run_together

__all__ = ["LoadSamples"]


@dataclass(frozen=True, slots=True)
class _Sample:
    """What a life of a worker last said."""

    asked_at_s: float
    """Monotonic clock of the router, when it had answered."""
    loads: tuple[RankLoad, ...]
    """In rank order; empty where it said nothing."""


class LoadSamples:
    """The last sample of each READY worker's life."""

    def __init__(self, fleet: Fleet, clock: Clock, settings: LoadSettings) -> None:
        self._fleet = fleet
        self._clock = clock
        self._settings = settings
        self._samples: dict[RankKey, _Sample] = {}
        self._turns = asyncio.Semaphore(settings.max_at_once)

    async def read(self, workers: Sequence[Worker]) -> tuple[Worker, ...]:
        """The workers with the load of their ranks, in the same order; never raises.

        An engine is asked where its last answer is older than its interval. One that does not answer in time, that has
        nothing to say or whose protocol has no such rpc shows no load; nor does one that is not READY, or is no more
        when all have answered.
        """
        asked = [worker for worker in workers if self._is_due(worker)]
        if asked:
            await run_together([self._ask(worker) for worker in asked], "load")
        ready = {worker.rank_key(0) for worker in self._fleet.workers().values() if _is_ready(worker)}
        self._samples = {life: sample for life, sample in self._samples.items() if life in ready}
        return tuple(replace(worker, ranks=self._ranks(worker)) for worker in workers)

    def _is_due(self, worker: Worker) -> bool:
        if not _is_ready(worker):
            return False
        interval_s = worker.spec.load_monitor_interval_s or self._settings.interval_s
        sample = self._samples.get(worker.rank_key(0))
        return sample is None or self._clock.monotonic_s() - sample.asked_at_s >= interval_s

    async def _ask(self, worker: Worker) -> None:
        client = self._fleet.client(worker.rank_key(0))
        if client is None:
            return
        timeout_s = self._settings.timeout_s
        async with self._turns:
            try:
                loads = await within(timeout_s, f"worker {worker.id}", client.loads(timeout_s=timeout_s))
            except EngineFailure:
                self._samples.pop(worker.rank_key(0), None)
                return
        self._samples[worker.rank_key(0)] = _Sample(self._clock.monotonic_s(), tuple(loads or ()))

    def _ranks(self, worker: Worker) -> tuple[Rank, ...]:
        sample = self._samples.get(worker.rank_key(0))
        loads = () if sample is None or not _is_ready(worker) else sample.loads
        return tuple(
            replace(rank, load=loads[rank.dp_rank] if rank.dp_rank < len(loads) else None) for rank in worker.ranks
        )


def _is_ready(worker: Worker) -> bool:
    return worker.status is WorkerStatus.READY

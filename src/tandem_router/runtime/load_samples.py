"""Engines' own load, read when somebody asks for it and not more often than stated.

A sample belongs to one life of a worker. Only READY workers are asked: a dead vLLM engine still answers with zeros, and
an engine's zeros are not idleness unless its health agrees.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from tandem_router.model.failure import EngineFailure
from tandem_router.model.ids import RankKey
from tandem_router.model.settings import LoadSettings
from tandem_router.model.worker import Rank, RankLoad, Worker, WorkerStatus
from tandem_router.ports import Clock, Fleet
from tandem_router.runtime.deadline import within
from tandem_router.runtime.together import run_together

__all__ = ["LoadSamples"]


class LoadSamples:
    """The last sample of each worker's life."""

    def __init__(self, fleet: Fleet, clock: Clock, settings: LoadSettings) -> None:
        self._fleet = fleet
        self._clock = clock
        self._settings = settings
        self._samples: dict[RankKey, tuple[RankLoad, ...]] = {}
        self._turns = asyncio.Semaphore(settings.max_at_once)

    async def read(self, workers: Sequence[Worker]) -> tuple[Worker, ...]:
        """The workers with the load of their ranks, in the same order; never raises.

        An engine is asked where its last sample is older than its interval. One that does not answer in time, or whose
        protocol has no such rpc, shows no load.
        """
        lives = {worker.rank_key(0): worker for worker in self._fleet.workers().values()}
        self._samples = {life: sample for life, sample in self._samples.items() if life in lives}
        asked = [worker for worker in workers if self._is_due(worker)]
        if asked:
            await run_together([self._ask(worker) for worker in asked], "load")
        return tuple(replace(worker, ranks=self._ranks(worker)) for worker in workers)

    def _is_due(self, worker: Worker) -> bool:
        if worker.status is not WorkerStatus.READY:
            return False
        interval_s = worker.spec.load_monitor_interval_s or self._settings.interval_s
        sample = self._samples.get(worker.rank_key(0))
        return not sample or self._clock.monotonic_s() - sample[0].sampled_at_s >= interval_s

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
        if loads:
            self._samples[worker.rank_key(0)] = tuple(loads)

    def _ranks(self, worker: Worker) -> tuple[Rank, ...]:
        loads = self._samples.get(worker.rank_key(0), ())
        if worker.status is not WorkerStatus.READY:
            return worker.ranks
        return tuple(
            replace(rank, load=loads[rank.dp_rank]) if rank.dp_rank < len(loads) else rank for rank in worker.ranks
        )

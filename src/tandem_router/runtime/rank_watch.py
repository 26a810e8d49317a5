"""Takes ranks out whose legs fail while their siblings' do not, and lets them in again for a trial."""

from __future__ import annotations

import asyncio

from tandem_router.core.commands import SetRankHealth
from tandem_router.core.rank_health import TRIAL_AFTER_S, RankHealths
from tandem_router.errors import Reason, TandemError
from tandem_router.model.failure import EngineFailure, Failure
from tandem_router.model.ids import RankKey
from tandem_router.runtime.pipeline import Pipeline
from tandem_router.runtime.scope import TaskScope

__all__ = ["RankWatch"]


class RankWatch:
    """Passive health of ranks; a worker with one rank is left to its probes."""

    def __init__(self, pipeline: Pipeline, scope: TaskScope) -> None:
        self._pipeline = pipeline
        self._scope = scope
        self._healths = RankHealths()
        self._out: dict[RankKey, None] = {}

    def leg_failed(self, key: RankKey, failure: EngineFailure) -> None:
        """Returns at once."""
        self._healths.retain(self._is_current)
        worker = self._pipeline.registry.worker(key.worker_id)
        if worker is None or worker.epoch != key.epoch:
            return
        if len(worker.ranks) < 2 or failure.connection_lost or key in self._out or self._scope.is_closed:
            return
        if self._healths.failed(key, failure.reason):
            self._out[key] = None
            told = Failure(failure.reason, failure.sentence)
            self._scope.spawn(self._take_out(key, told), f"rank {key.dp_rank} of {key.worker_id}")

    def leg_succeeded(self, key: RankKey) -> None:
        """Returns at once; one look-up where nothing is held against the rank."""
        self._healths.succeeded(key)

    def __len__(self) -> int:
        """Ranks that something is held against."""
        return len(self._healths)

    def _is_current(self, key: RankKey) -> bool:
        worker = self._pipeline.registry.worker(key.worker_id)
        return worker is not None and worker.epoch == key.epoch

    async def _take_out(self, key: RankKey, failure: Failure) -> None:
        try:
            is_out = await self._set(key, failure)
            if is_out:
                await asyncio.sleep(TRIAL_AFTER_S)
                self._healths.on_trial(key)
                is_out = await self._set(key, None)
            if not is_out:
                self._healths.forget(key)
        finally:
            self._out.pop(key, None)

    async def _set(self, key: RankKey, failure: Failure | None) -> bool:
        """Have the rank out, or in with None; whether that life goes on and the rank is so now."""
        try:
            outcome = await self._pipeline.submit(SetRankHealth(key.worker_id, key.epoch, key.dp_rank, failure))
        except TandemError as error:
            if error.reason is not Reason.DRAINING:
                raise
            return False
        return not outcome.is_stale

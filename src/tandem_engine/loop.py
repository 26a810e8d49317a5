"""The step loop: waits for work, lets faults hold a step back, computes it in one thread, hands the results out."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from tandem_engine.model import Model
from tandem_engine.ports import FaultPort, NoFaults
from tandem_engine.profiling import RankStep, StepProfiler
from tandem_engine.requests import EngineError, EngineErrorReason
from tandem_engine.scheduler import RankScheduler
from tandem_engine.step import StepPlan, StepResult, run_step

__all__ = ["StepLoop"]


class StepLoop:
    """Drives the ranks' schedulers. The arithmetic touches only pages that its plan names; all else is on the loop."""

    def __init__(
        self,
        model: Model,
        ranks: Sequence[RankScheduler],
        faults: FaultPort,
        *,
        clock: Callable[[], float],
        tidy: Callable[[], None],
    ) -> None:
        """`tidy` is called between steps, before admission: leases and aborts that had to wait for the step."""
        self._model = model
        self._ranks = ranks
        self._faults = faults
        self._clock = clock
        self._tidy = tidy
        self._wake = asyncio.Event()
        self._fault: asyncio.Future[None] | None = None
        self._started = False
        self.profiler = StepProfiler()
        self.in_step = False
        """True while a step is being computed: requests that are part of it must not lose their pages."""
        self.is_stopping = False
        self.failure: BaseException | None = None
        """What ended the loop, if it did not end by `stop`."""

    @property
    def is_running(self) -> bool:
        return self._started and not self.is_stopping

    async def run(self) -> None:
        """Step until `stop`, then return. Raises what killed the loop; requests then end with "error". Once only."""
        if self._started:
            raise EngineError(EngineErrorReason.WRONG_STATE, "an engine runs once")
        self._started = True
        executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tandem-engine-step")
        finish, reason = "abort", "the engine has stopped"
        try:
            for step in itertools.count():
                await self._until_work()
                if not self.is_stopping:
                    await self._held_back(step)
                if self.is_stopping:
                    return
                await self._one_step(executor, step)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self.failure = error
            finish, reason = "error", f"the engine has failed: {error}"
            raise
        finally:
            self.is_stopping = True
            # A cancelled run leaves a step in the thread; its pages must not change hands under it.
            executor.shutdown(wait=True)
            self.in_step = False
            for rank in self._ranks:
                rank.end_all(finish, reason)

    def stop(self) -> None:
        """Let `run` return after the current step; what lives ends with "abort". Idempotent."""
        self.is_stopping = True
        self._wake.set()
        if self._fault is not None:
            self._fault.cancel()

    def wake(self) -> None:
        """There may be something to do: a request, pages that came free, an abort."""
        self._wake.set()

    async def _until_work(self) -> None:
        """Between steps: tidying, admission; returns when there is something to compute, or at `stop`."""
        while not self.is_stopping:
            self._wake.clear()
            self._tidy()
            for rank in self._ranks:
                rank.admit()
            if any(rank.has_work for rank in self._ranks):
                return
            deadlines = [at for rank in self._ranks if (at := rank.next_deadline_s()) is not None]
            timeout = max(min(deadlines) - self._clock(), 0.0) if deadlines else None
            try:
                async with asyncio.timeout(timeout):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _held_back(self, step: int) -> None:
        """Let a fault delay this step, or hang it until `stop`."""
        if type(self._faults) is NoFaults:
            return  # a healthy engine pays no task per step
        self._fault = asyncio.ensure_future(self._faults.before_step(step))
        try:
            await self._fault
        except asyncio.CancelledError:
            if not self.is_stopping:
                raise
        finally:
            self._fault = None

    async def _one_step(self, executor: ThreadPoolExecutor, step: int) -> None:
        # Requests may have been aborted while a fault held the step back, so plans are made only now.
        plans = [(rank, plan) for rank in self._ranks if (plan := rank.plan()) is not None]
        if not plans:
            return
        began_s = self._clock()
        self.in_step = True
        loop = asyncio.get_running_loop()
        results = await loop.run_in_executor(executor, self._compute, plans)
        self.in_step = False
        now_s = self._clock()
        if self.profiler.is_active:
            self.profiler.took(step, began_s, now_s, [_summary(rank, plan) for rank, plan in plans])
        for (rank, plan), result in zip(plans, results, strict=True):
            rank.apply(plan, result, now_s)

    def _compute(self, plans: list[tuple[RankScheduler, StepPlan]]) -> list[StepResult]:
        return [run_step(self._model, plan, rank.cache.data) for rank, plan in plans]


def _summary(rank: RankScheduler, plan: StepPlan) -> RankStep:
    prompt_tokens = sum(part.end - part.start for part in plan.parts)
    return RankStep(rank.rank, len(plan.batch.token_ids), prompt_tokens, len(plan.parts), len(plan.jobs))

"""The engine: requests in, emissions out, one compute step at a time.

All bookkeeping happens on the event loop. The arithmetic of a step runs in one dedicated thread and touches only pages
that its plan names; requests that are part of a running step are ended when it is over, everything else at once.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tandem_engine.handle import RequestHandle
from tandem_engine.intake import check, make_live
from tandem_engine.kv_cache import PagesError
from tandem_engine.kv_events import KvEvent, KvEventKind, KvEventLog
from tandem_engine.lifecycle import RequestState
from tandem_engine.live import LiveRequest
from tandem_engine.model import Model
from tandem_engine.ports import FaultPort, NoFaults
from tandem_engine.requests import EngineError, EngineErrorReason, EngineRequest, HeldPages, Ledger, RankLoad
from tandem_engine.scheduler import RankScheduler
from tandem_engine.settings import EngineSettings
from tandem_engine.step import StepPlan, StepResult, run_step

__all__ = ["Engine", "EngineSettings", "KvEvent", "KvEventKind", "KvEventLog", "RequestHandle"]


class Engine:
    """`dp_size` independent ranks over one model, driven by one loop (`run`)."""

    def __init__(
        self,
        model: Model,
        settings: EngineSettings | None = None,
        *,
        faults: FaultPort | None = None,
        clock: Callable[[], float] = time.monotonic,
        draw_seed: Callable[[], int] = lambda: secrets.randbits(63),
    ) -> None:
        """`clock` times leases and rates, in seconds. `draw_seed` supplies seeds for requests that bring none."""
        self.model = model
        self.settings = settings if settings is not None else EngineSettings()
        self._faults: FaultPort = faults if faults is not None else NoFaults()
        self._clock = clock
        self._draw_seed = draw_seed
        self._context = self.settings.context(model.config.max_position)
        hold_ids = itertools.count(1)
        self._ranks = tuple(
            RankScheduler(rank, model.config, self.settings, hold_ids=hold_ids, on_token=self._faults.on_token)
            for rank in range(self.settings.dp_size)
        )
        self._live: dict[str, tuple[RankScheduler, LiveRequest]] = {}
        self._deferred: list[tuple[LiveRequest, str]] = []
        self._wake = asyncio.Event()
        self._fault: asyncio.Future[None] | None = None
        self._in_step = False
        self._started = False
        self._stopping = False
        self._failure: BaseException | None = None

    # ---- running ----------------------------------------------------------------------------------------------------

    @property
    def context(self) -> int:
        """Most tokens of one prompt and its output together."""
        return self._context

    @property
    def page_bytes(self) -> int:
        """Size of one page in `read_page` and `write_page`."""
        return self._ranks[0].cache.layout.page_bytes

    @property
    def is_running(self) -> bool:
        return self._started and not self._stopping

    @property
    def failure(self) -> BaseException | None:
        """What ended the step loop, if it did not end by `stop`."""
        return self._failure

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
                if not self._stopping:
                    await self._held_back(step)
                if self._stopping:
                    return
                await self._one_step(executor)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._failure = error
            finish, reason = "error", f"the engine has failed: {error}"
            raise
        finally:
            self._stopping = True
            # A cancelled run leaves a step in the thread; its pages must not change hands under it.
            executor.shutdown(wait=True)
            self._in_step = False
            for rank in self._ranks:
                rank.end_all(finish, reason)

    def stop(self) -> None:
        """Let `run` return after the current step; what lives ends with "abort". Idempotent."""
        self._stopping = True
        self._wake.set()
        if self._fault is not None:
            self._fault.cancel()

    # ---- requests ---------------------------------------------------------------------------------------------------

    def submit(self, request: EngineRequest) -> RequestHandle:
        """Queue a request. EngineError: INVALID (fix it), ALREADY_EXISTS (a live one has this id), STOPPED."""
        if self._stopping:
            raise EngineError(EngineErrorReason.STOPPED, "the engine has stopped")
        if request.request_id in self._live:
            raise EngineError(EngineErrorReason.ALREADY_EXISTS, f"request_id {request.request_id!r} is live")
        check(request, self.model, self.settings)
        rank = self._choose_rank(request)
        handle = RequestHandle(request.request_id, request.phase, rank.rank, self)
        live = make_live(request, self.model, self.settings, sink=handle, rank=rank.rank, draw_seed=self._draw_seed)
        handle.bind(live)
        self._live[request.request_id] = (rank, live)
        rank.add(live)
        self._wake.set()
        return handle

    def abort(self, request_id: str, reason: str = "abort") -> bool:
        """End a live request with "abort"; False when there is none. Held pages are not live: use `release`."""
        found = self._live.get(request_id)
        return found is not None and self.abort_live(found[1], reason)

    def release(self, held: HeldPages) -> bool:
        """Give a prefill's pages back; False when they were released, or the lease ended, before."""
        released = self._ranks[held.rank].release(held.hold_id)
        self._wake.set()  # somebody may be waiting for these pages
        return released

    # ---- pages ------------------------------------------------------------------------------------------------------

    def read_page(self, rank: int, page: int) -> bytes:
        """One page's `page_bytes` bytes, counted as sent.

        EngineError: WRONG_STATE when nobody holds it (any more); with `corrupt_on_abort` it is read all the same, as a
        remote write that has begun cannot be called back.
        """
        scheduler = self._rank(rank, page) if self._corrupts else self._referenced(rank, page)
        scheduler.accounts.pages_sent += 1
        return scheduler.cache.read_page(page)

    def write_page(self, rank: int, page: int, data: bytes) -> None:
        """Fill one landing page, counted as received.

        EngineError: INVALID for a wrong size, WRONG_STATE when the page is nobody's. With `corrupt_on_abort` a page may
        have changed hands meanwhile and is overwritten all the same: that is the corruption it imitates.
        """
        scheduler = self._rank(rank, page) if self._corrupts else self._referenced(rank, page)
        try:
            scheduler.cache.write_page(page, data)
        except PagesError as error:
            raise EngineError(EngineErrorReason.INVALID, str(error)) from None
        scheduler.accounts.pages_received += 1

    # ---- what can be seen -------------------------------------------------------------------------------------------

    def ledger(self) -> Ledger:
        """What is in hand now, over all ranks and per rank; leases that have ended are released first."""
        self._expire()
        return Ledger.of(tuple(rank.ledger() for rank in self._ranks))

    def loads(self) -> tuple[RankLoad, ...]:
        """Load per rank, for GetLoads."""
        self._expire()
        now_s = self._clock()
        return tuple(rank.load(now_s) for rank in self._ranks)

    def kv_events(self, rank: int = 0) -> KvEventLog:
        """That rank's stored, removed and cleared blocks."""
        return self._ranks[rank].cache.events

    def clear_cache(self) -> int:
        """Forget every cached block of every rank; returns the pages freed."""
        return sum(rank.cache.clear() for rank in self._ranks)

    # ---- on behalf of a handle (RequestControls) --------------------------------------------------------------------

    def abort_live(self, live: LiveRequest, reason: str) -> bool:
        found = self._live.get(live.request.request_id)
        if found is None or found[1] is not live:
            return False
        rank, _ = found
        if self._in_step and live.state in (RequestState.COMPUTING, RequestState.RUNNING):
            self._deferred.append((live, reason))
        else:
            rank.abort(live, reason, free_at_once=self._corrupts)
        self._wake.set()
        return True

    def kv_arrived(self, live: LiveRequest, n_pages: int) -> None:
        self._rank_of(live).kv_arrived(live, n_pages)
        self._wake.set()

    def kv_failed(self, live: LiveRequest, reason: str) -> None:
        self._rank_of(live).kv_failed(live, reason)
        self._wake.set()

    def transfer_stopped(self, live: LiveRequest) -> None:
        self._rank_of(live).transfer_stopped(live)
        self._wake.set()

    def forget_handle(self, request_id: str) -> None:
        self._live.pop(request_id, None)

    # ---- inside -----------------------------------------------------------------------------------------------------

    @property
    def _corrupts(self) -> bool:
        return self.settings.corrupt_on_abort or self._faults.corrupt_on_abort

    def _rank_of(self, live: LiveRequest) -> RankScheduler:
        return self._ranks[live.rank]

    def _rank(self, rank: int, page: int) -> RankScheduler:
        if not 0 <= rank < len(self._ranks) or not 0 <= page < self.settings.num_pages:
            raise EngineError(EngineErrorReason.INVALID, f"there is no page {page} of rank {rank}")
        return self._ranks[rank]

    def _referenced(self, rank: int, page: int) -> RankScheduler:
        scheduler = self._rank(rank, page)
        self._expire()
        if scheduler.cache.references(page) == 0:
            raise EngineError(EngineErrorReason.WRONG_STATE, f"page {page} of rank {rank} is held by nobody")
        return scheduler

    def _expire(self) -> None:
        now_s = self._clock()
        for rank in self._ranks:
            rank.expire(now_s)

    async def _until_work(self) -> None:
        """Between steps: leases, aborts, admission; returns when there is something to compute, or at `stop`."""
        while not self._stopping:
            self._wake.clear()
            self._expire()
            deferred, self._deferred = self._deferred, []
            for live, reason in deferred:
                self.abort_live(live, reason)
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
            if not self._stopping:
                raise
        finally:
            self._fault = None

    async def _one_step(self, executor: ThreadPoolExecutor) -> None:
        # Requests may have been aborted while a fault held the step back, so plans are made only now.
        plans = [(rank, plan) for rank in self._ranks if (plan := rank.plan()) is not None]
        if not plans:
            return
        self._in_step = True
        loop = asyncio.get_running_loop()
        results = await loop.run_in_executor(executor, self._compute, plans)
        self._in_step = False
        now_s = self._clock()
        for (rank, plan), result in zip(plans, results, strict=True):
            rank.apply(plan, result, now_s)

    def _compute(self, plans: list[tuple[RankScheduler, StepPlan]]) -> list[StepResult]:
        return [run_step(self.model, plan, rank.cache.data) for rank, plan in plans]

    def _choose_rank(self, request: EngineRequest) -> RankScheduler:
        if request.dp_rank is not None:
            return self._ranks[request.dp_rank]
        if request.room is not None:
            return self._ranks[request.room % len(self._ranks)]
        return min(self._ranks, key=lambda rank: (rank.queue_length, rank.rank))

"""The engine: requests in, emissions out, one compute step at a time.

All bookkeeping happens on the event loop. The arithmetic of a step runs in one dedicated thread and touches only pages
that its plan names; requests that are part of a running step are ended when it is over, everything else at once.
"""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Callable

from tandem_engine.handle import RequestHandle
from tandem_engine.intake import check, make_live
from tandem_engine.kv_cache import PagesError
from tandem_engine.kv_events import KvEvent, KvEventKind, KvEventLog
from tandem_engine.lifecycle import RequestState
from tandem_engine.live import LiveRequest
from tandem_engine.loop import StepLoop
from tandem_engine.model import Model
from tandem_engine.ports import FaultPort, NoFaults
from tandem_engine.profiling import StepProfiler
from tandem_engine.requests import EngineError, EngineErrorReason, EngineRequest, HeldPages, Ledger, RankLoad
from tandem_engine.scheduler import RankScheduler
from tandem_engine.settings import EngineSettings

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
        self._loop = StepLoop(model, self._ranks, self._faults, clock=clock, tidy=self._tidy)

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
        return self._loop.is_running

    @property
    def failure(self) -> BaseException | None:
        """What ended the step loop, if it did not end by `stop`."""
        return self._loop.failure

    @property
    def profiler(self) -> StepProfiler:
        """Times the steps when told to."""
        return self._loop.profiler

    async def run(self) -> None:
        """Step until `stop`, then return. Raises what killed the loop; requests then end with "error". Once only."""
        await self._loop.run()

    def stop(self) -> None:
        """Let `run` return after the current step; what lives ends with "abort". Idempotent."""
        self._loop.stop()

    # ---- requests ---------------------------------------------------------------------------------------------------

    def submit(self, request: EngineRequest) -> RequestHandle:
        """Queue a request. EngineError: INVALID (fix it), ALREADY_EXISTS (a live one has this id), STOPPED."""
        if self._loop.is_stopping:
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
        self._loop.wake()
        return handle

    def abort(self, request_id: str, reason: str = "abort") -> bool:
        """End a live request with "abort"; False when there is none. Held pages are not live: use `release`."""
        found = self._live.get(request_id)
        return found is not None and self.abort_live(found[1], reason)

    def release(self, held: HeldPages) -> bool:
        """Give a prefill's pages back; False when they were released, or the lease ended, before."""
        released = self._ranks[held.rank].release(held.hold_id)
        self._loop.wake()  # somebody may be waiting for these pages
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

    @property
    def is_idle(self) -> bool:
        """True when nobody refers to any page: no request, no prefill's pages held for a decode engine."""
        self._expire()
        return not self._live and all(rank.cache.referenced_pages == 0 for rank in self._ranks)

    def clear_cache(self) -> int:
        """Forget every cached block of every rank; returns the pages freed."""
        return sum(rank.cache.clear() for rank in self._ranks)

    # ---- on behalf of a handle (RequestControls) --------------------------------------------------------------------

    def abort_live(self, live: LiveRequest, reason: str) -> bool:
        found = self._live.get(live.request.request_id)
        if found is None or found[1] is not live:
            return False
        rank, _ = found
        if self._loop.in_step and live.state in (RequestState.COMPUTING, RequestState.RUNNING):
            self._deferred.append((live, reason))
        else:
            rank.abort(live, reason, free_at_once=self._corrupts)
        self._loop.wake()
        return True

    def kv_arrived(self, live: LiveRequest, n_pages: int) -> None:
        self._rank_of(live).kv_arrived(live, n_pages)
        self._loop.wake()

    def kv_failed(self, live: LiveRequest, reason: str) -> None:
        self._rank_of(live).kv_failed(live, reason)
        self._loop.wake()

    def transfer_stopped(self, live: LiveRequest) -> None:
        self._rank_of(live).transfer_stopped(live)
        self._loop.wake()

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

    def _tidy(self) -> None:
        self._expire()
        deferred, self._deferred = self._deferred, []
        for live, reason in deferred:
            self.abort_live(live, reason)

    def _choose_rank(self, request: EngineRequest) -> RankScheduler:
        if request.dp_rank is not None:
            return self._ranks[request.dp_rank]
        if request.room is not None:
            return self._ranks[request.room % len(self._ranks)]
        return min(self._ranks, key=lambda rank: (rank.queue_length, rank.rank))

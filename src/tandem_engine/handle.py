"""What a caller holds of a submitted request: its emissions, its pages, and the means to end it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from tandem_engine.live import LiveRequest
from tandem_engine.requests import Emission, EngineError, EngineErrorReason, HeldPages, Phase

__all__ = ["RequestControls", "RequestHandle"]


class RequestControls(Protocol):
    """What the engine does on behalf of a handle."""

    def abort_live(self, live: LiveRequest, reason: str) -> bool: ...
    def kv_arrived(self, live: LiveRequest, n_pages: int) -> None: ...
    def kv_failed(self, live: LiveRequest, reason: str) -> None: ...
    def transfer_stopped(self, live: LiveRequest) -> None: ...
    def forget_handle(self, request_id: str) -> None: ...


class RequestHandle:
    """One request's async iterator of emissions; iteration ends after every choice has finished.

    The queue is bounded by the request's own tokens. For one event loop and one reader; not thread-safe.
    """

    def __init__(self, request_id: str, phase: Phase, rank: int, controls: RequestControls) -> None:
        self.request_id = request_id
        self.phase = phase
        self.rank = rank
        self._controls = controls
        self._live: LiveRequest | None = None
        self._queue: deque[Emission] = deque()
        self._ended: str | None = None
        self._landing: tuple[int, ...] | None = None
        self._held: HeldPages | None = None
        self._waiters: list[asyncio.Future[None]] = []

    # ---- the caller's side ------------------------------------------------------------------------------------------

    @property
    def content(self) -> int:
        """The block hash that the last full block of this prompt has under this adapter; see `HeldPages.content`."""
        return self._bound().content

    def __aiter__(self) -> RequestHandle:
        return self

    async def __anext__(self) -> Emission:
        while not self._queue:
            if self._ended is not None:
                raise StopAsyncIteration
            await self._changed()
        return self._queue.popleft()

    async def held_pages(self) -> HeldPages:
        """PREFILL: the finished prompt's pages, to be given to `Engine.release`.

        EngineError(ABORTED) when the request ended without holding pages, WRONG_STATE for another phase.
        """
        self._only(Phase.PREFILL, "held_pages")
        while self._held is None:
            self._raise_if_ended()
            await self._changed()
        return self._held

    async def landing_pages(self) -> tuple[int, ...]:
        """DECODE: page ids for the FULL prompt blocks, in order, for `Engine.write_page(handle.rank, ...)`.

        Empty for a prompt below one page; `kv_arrived(0)` is still awaited. EngineError(ABORTED) when the request ended
        before it had pages, WRONG_STATE for another phase.
        """
        self._only(Phase.DECODE, "landing_pages")
        while self._landing is None:
            self._raise_if_ended()
            await self._changed()
        return self._landing

    def kv_arrived(self, n_pages: int) -> None:
        """DECODE: the first `n_pages` landing pages are written; missing ones are computed (`recomputed_blocks`)."""
        self._only(Phase.DECODE, "kv_arrived")
        self._controls.kv_arrived(self._bound(), n_pages)

    def kv_failed(self, reason: str) -> None:
        """DECODE: the transfer failed and its writer has stopped: ends with "error", pages free at once."""
        self._only(Phase.DECODE, "kv_failed")
        self._controls.kv_failed(self._bound(), reason)

    def transfer_stopped(self) -> None:
        """DECODE: the writer writes no more. Frees the pages of a request aborted in transfer; idempotent."""
        self._only(Phase.DECODE, "transfer_stopped")
        self._controls.transfer_stopped(self._bound())

    def abort(self, reason: str = "abort") -> bool:
        """End the request; False when it has ended already. A prefill's held pages stay: release them."""
        return self._controls.abort_live(self._bound(), reason)

    # ---- the engine's side (EmissionSink) ---------------------------------------------------------------------------

    def bind(self, live: LiveRequest) -> None:
        """Called once by the engine, before anything else."""
        self._live = live

    def emit(self, emission: Emission) -> None:
        self._queue.append(emission)
        self._wake()

    def landed(self, pages: Sequence[int]) -> None:
        self._landing = tuple(pages)
        self._wake()

    def held(self, held: HeldPages) -> None:
        self._held = held
        self._wake()

    def ended(self, reason: str) -> None:
        if self._ended is None:
            self._ended = reason
            self._controls.forget_handle(self.request_id)
            self._wake()

    # ---- inside -----------------------------------------------------------------------------------------------------

    def _bound(self) -> LiveRequest:
        assert self._live is not None
        return self._live

    def _only(self, phase: Phase, what: str) -> None:
        if self.phase is not phase:
            raise EngineError(EngineErrorReason.WRONG_STATE, f"{what} is for {phase.value}, this is {self.phase.value}")

    def _raise_if_ended(self) -> None:
        if self._ended is not None:
            raise EngineError(EngineErrorReason.ABORTED, f"request {self.request_id} ended: {self._ended}")

    async def _changed(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():  # a cancelled reader leaves its waiter behind
                waiter.set_result(None)

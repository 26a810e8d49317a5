"""One request on this engine and what it owes to the KV transfer; `stop` gives everything back, from any state."""

from __future__ import annotations

import asyncio
from typing import Protocol

from tandem_engine.engine import Engine, RequestHandle
from tandem_engine.faults import Faults
from tandem_engine.offers import Offer
from tandem_engine.requests import EngineError, HeldPages
from tandem_engine.transfer import Geometry, KvAddress, TransferError, drop_pages, pull_pages

__all__ = ["AggregatedLeg", "DecodeLeg", "Leg", "PrefillLeg", "RecomputingLeg"]


class Leg(Protocol):
    """What a servicer does with any leg: iterate its handle, stop it."""

    handle: RequestHandle

    def stop(self, reason: str) -> None:
        """Ends the leg and gives back everything it holds. Idempotent; does nothing to a leg that ended by itself."""
        ...


class AggregatedLeg:
    """A request that this engine serves alone."""

    def __init__(self, handle: RequestHandle) -> None:
        self.handle = handle

    def stop(self, reason: str) -> None:
        self.handle.abort(reason)


class PrefillLeg:
    """A prompt whose pages go to a decode engine, under `offer` (rendezvous) or later under a handle (handoff)."""

    def __init__(
        self, handle: RequestHandle, engine: Engine, scope: asyncio.TaskGroup, offer: Offer | None = None
    ) -> None:
        self.handle = handle
        self._engine = engine
        self._scope = scope
        self._offer = offer
        self._is_over = False
        if offer is not None:
            offer.outcome.add_done_callback(self._offer_ended)

    @property
    def transfer_failure(self) -> str | None:
        """Rendezvous: why the pages were not taken; None when they were, or may still be."""
        if self._offer is None or not self._offer.outcome.done():
            return None
        return self._offer.outcome.result()

    async def pass_on(self) -> HeldPages:
        """The held pages; from now on whoever asked must release them. EngineError(ABORTED) when there are none."""
        held = await self.handle.held_pages()
        self._is_over = True
        return held

    async def delivered(self, lease_s: float) -> str | None:
        """Rendezvous: offers the pages and waits until they were taken. None, or why they were not."""
        assert self._offer is not None
        try:
            held = await self.handle.held_pages()
            self._is_over = True
            self._offer.provide(held)
            async with asyncio.timeout(lease_s):
                return await asyncio.shield(self._offer.outcome)
        except TimeoutError:
            reason = f"no decode engine came within {lease_s:g} s"
        except EngineError as error:
            reason = self.transfer_failure or error.message
        self._offer.settle(reason)
        return reason

    def stop(self, reason: str) -> None:
        if self._offer is not None:
            self._offer.settle(reason)
        if not self._is_over:
            self._is_over = True
            self.handle.abort(reason)
            # The abort may come too late for a step that is being computed: then there are pages to give back.
            self._scope.create_task(self._give_back())

    def _offer_ended(self, outcome: asyncio.Future[str | None]) -> None:
        if outcome.result() is not None:
            self.stop(f"the KV transfer failed: {outcome.result()}")

    async def _give_back(self) -> None:
        try:
            self._engine.release(await self.handle.held_pages())
        except EngineError:
            return


class RecomputingLeg:
    """A request that came to a decode engine without a handle: it computes the prompt, and the ledger says so."""

    def __init__(self, handle: RequestHandle, scope: asyncio.TaskGroup) -> None:
        self.handle = handle
        scope.create_task(self._begin())

    def stop(self, reason: str) -> None:
        if self.handle.abort(reason):
            self.handle.transfer_stopped()

    async def _begin(self) -> None:
        try:
            await self.handle.landing_pages()
            self.handle.kv_arrived(0)
        except EngineError:
            return


class DecodeLeg:
    """A request that goes on from pages that another engine computed; one task of `scope` pulls them."""

    def __init__(
        self, handle: RequestHandle, engine: Engine, faults: Faults, scope: asyncio.TaskGroup, address: KvAddress,
        *, timeout_s: float,
    ) -> None:  # fmt: skip
        self.handle = handle
        self.transfer_failure: str | None = None
        """Why the pages did not come; None when they did, or may still."""
        self._engine = engine
        self._faults = faults
        self._scope = scope
        self._address = address
        self._timeout_s = timeout_s
        self._geometry = Geometry(engine.settings.page_size, engine.page_bytes)
        self._is_stopped = False
        self._task = scope.create_task(self._pull())

    def stop(self, reason: str) -> None:
        if self._is_stopped:
            return
        self._is_stopped = True
        self.handle.abort(reason)
        # With corrupt_on_abort the engine has freed the pages, and the writer goes on writing into them: the damage
        # that real engines do to other requests.
        if not self._faults.corrupt_on_abort:
            self._task.cancel()

    async def _pull(self) -> None:
        knocked = False
        try:
            slots = await self.handle.landing_pages()
            knocked = True
            count = await pull_pages(
                self._address, slots, self._write, self._geometry,
                timeout_s=self._timeout_s, content=self.handle.content,
            )  # fmt: skip
        except TransferError as error:
            self._failed(str(error))
        except EngineError as error:
            # Before the knock: the request ended without pages. After it: a page was refused by the cache.
            if knocked:
                self._failed(error.message)
        except asyncio.CancelledError:
            self.handle.transfer_stopped()
        else:
            if self._is_stopped:
                self.handle.transfer_stopped()
            else:
                self.handle.kv_arrived(count)
        finally:
            if not knocked and self._address.is_handle:
                self._scope.create_task(self._drop())

    async def _drop(self) -> None:
        # Nobody else will ever come for a handle; without this its pages would stay taken until the lease ends.
        await drop_pages(self._address, self._geometry)

    def _write(self, slot: int, payload: bytes) -> None:
        self._engine.write_page(self.handle.rank, slot, payload)

    def _failed(self, reason: str) -> None:
        self.transfer_failure = reason
        if self._is_stopped:
            self.handle.transfer_stopped()
        else:
            self.handle.kv_failed(reason)

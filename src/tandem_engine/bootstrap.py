"""The prefill side of a KV transfer: a TCP port where decode engines knock for a prompt's pages.

For SGLang it is the bootstrap server, for vLLM the side channel. A connection that closes after its knock ends the
transfer and frees the pages: an offer is single use.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Callable
from typing import Protocol

from tandem_engine.faults import Faults
from tandem_engine.kv_frames import FrameError, FrameKind, Header, Knock, encode, encode_page, read_frame
from tandem_engine.offers import DuplicateRoomError, Offer, Offers
from tandem_engine.requests import EngineError, HeldPages
from tandem_engine.transfer import Geometry

__all__ = ["BootstrapServer", "PageSource", "RefusedError"]

_log = logging.getLogger(__name__)


class PageSource(Protocol):
    """The engine, as far as a transfer needs it."""

    def read_page(self, rank: int, page_id: int) -> bytes: ...

    def release(self, held: HeldPages) -> bool: ...


class RefusedError(Exception):
    """A knock that gets no pages; the text goes to the decode engine."""


class BootstrapServer:
    """Serves every offer of one engine. `timeout_s` bounds how long a knock waits for its room, and for its ack."""

    def __init__(
        self, source: PageSource, geometry: Geometry, faults: Faults, *, engine_id: Callable[[int], str],
        timeout_s: float,
    ) -> None:  # fmt: skip
        self.offers = Offers(source.release)
        self._source = source
        self._geometry = geometry
        self._faults = faults
        self._engine_id = engine_id
        self._timeout_s = timeout_s
        self._server: asyncio.Server | None = None
        self._conversations: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def start(self, host: str, port: int) -> int:
        """Listens and returns the port, chosen by the system when `port` is 0. Raises OSError when it is taken."""
        self._server = await asyncio.start_server(self._serve, host, port)
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def stop(self) -> None:
        """Stops listening, breaks every transfer and frees every page. Safe to call twice."""
        self.break_off()
        if self._server is not None:
            await self._server.wait_closed()
        if self._conversations:
            await asyncio.wait(self._conversations)

    def break_off(self) -> None:
        """Resets every connection at once, as the system does when the process dies."""
        if self._server is not None:
            self._server.close()
        self.offers.settle_all("the prefill engine stopped")
        for task, writer in self._conversations.items():
            writer.transport.abort()
            task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._conversations[task] = writer
        try:
            await self._converse(reader, writer)
        except (RefusedError, EngineError) as refusal:
            writer.write(encode(FrameKind.REFUSED, {"reason": str(refusal)}))
        except (FrameError, OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            _log.info("transfer ended: %s", str(error) or type(error).__name__)
        except asyncio.CancelledError:
            # Only `break_off` cancels; the task belongs to asyncio's server, which logs a cancelled one as a failure.
            pass
        finally:
            del self._conversations[task]
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(self._timeout_s):
            frame = await read_frame(reader)
        if frame.kind is not FrameKind.KNOCK:
            raise FrameError(f"{frame.kind.name} instead of a knock")
        knock = Knock.parse(frame.body)
        # The next thing the decode engine says is its ack, or nothing any more: read while sending, so that its death
        # is noticed although there is nothing to send yet.
        reply = asyncio.create_task(read_frame(reader))
        work = asyncio.create_task(self._deliver(knock, writer))
        offer: Offer | None = None
        reason: str | None = "the decode engine went away"
        try:
            await asyncio.wait((reply, work), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                return
            offer = work.result()
            async with asyncio.timeout(self._timeout_s):
                acknowledged = (await reply).kind is FrameKind.ACK
            reason = None if acknowledged else "the decode engine did not acknowledge"
        finally:
            for task in (reply, work):
                task.cancel()
            await asyncio.wait((reply, work))
            for task in (reply, work):
                _ = task.cancelled() or task.exception()
            if offer is not None:
                offer.settle(reason)

    async def _deliver(self, knock: Knock, writer: asyncio.StreamWriter) -> Offer:
        """Sends everything up to END; the offer is settled here unless it is returned."""
        offer = await self._find(knock)
        offer.is_taken = True
        reason, is_sent = "the decode engine went away", False
        try:
            if knock.drop:
                reason = "dropped by the decode engine"
                writer.write(encode(FrameKind.END))
                return offer
            held = await offer.pages()
            if held is None:
                raise RefusedError(f"the prefill ended: {offer.outcome.result()}")
            self._check(knock, held)
            await self._send(held, writer)
            is_sent = True
            return offer
        except (RefusedError, EngineError, OSError) as error:
            reason = str(error)
            raise
        finally:
            if not is_sent:
                offer.settle(reason)

    async def _find(self, knock: Knock) -> Offer:
        if knock.request_id is not None:
            offer = self.offers.get(knock.request_id)
            if offer is None:
                raise RefusedError(f"handle {knock.request_id} is unknown, used or expired")
        else:
            assert knock.room is not None
            try:
                async with asyncio.timeout(self._timeout_s):
                    offer = await self.offers.awaited(knock.room)
            except TimeoutError:
                raise RefusedError(f"bootstrap_room {knock.room} did not open within {self._timeout_s:g} s") from None
            except DuplicateRoomError as error:
                raise RefusedError(str(error)) from None
        if offer.is_taken:
            raise RefusedError(f"{offer.key} has been knocked for already")
        return offer

    def _check(self, knock: Knock, held: HeldPages) -> None:
        if (knock.page_size, knock.page_bytes) != (self._geometry.page_size, self._geometry.page_bytes):
            raise RefusedError(
                f"page geometry {knock.page_size} tokens, {knock.page_bytes} bytes; here it is "
                f"{self._geometry.page_size} tokens, {self._geometry.page_bytes} bytes"
            )
        if knock.content is not None and knock.content != held.content:
            raise RefusedError("the pages are of another prompt, or of another adapter or version of it")
        if knock.dp_rank is not None and knock.dp_rank != held.rank:
            raise RefusedError(f"rank {knock.dp_rank} wanted, the pages are on rank {held.rank}")
        if knock.request_id is not None:
            if knock.engine_id != self._engine_id(held.rank):
                raise RefusedError(f"engine {knock.engine_id} wanted, this is {self._engine_id(held.rank)}")
            if knock.block_ids != held.pages:
                raise RefusedError(f"blocks {knock.block_ids} wanted, the handle has {held.pages}")

    async def _send(self, held: HeldPages, writer: asyncio.StreamWriter) -> None:
        faults = self._faults
        header = Header(len(held.pages), held.num_tokens, self._geometry.page_bytes, held.rank).pack()
        if faults.plan.fail_transfer:
            writer.write(header[:1])
            await writer.drain()
            raise OSError("fault: fail_transfer")
        writer.write(header)
        await faults.while_plan(lambda plan: plan.hang_transfer)
        for index, page in enumerate(held.pages):
            await faults.linger(lambda plan: plan.transfer_latency_per_page)
            payload = self._source.read_page(held.rank, page)
            if faults.plan.drop_page == index:
                continue
            if faults.plan.flip_page == index:
                payload = flip(payload)
            writer.write(encode_page(index, payload))
            await writer.drain()
            # drain() does not yield while the socket keeps up; a long prompt must not hold the loop.
            await asyncio.sleep(0)
        writer.write(encode(FrameKind.END))
        await writer.drain()


def flip(payload: bytes) -> bytes:
    """`payload` with the top exponent bit of every float32 flipped: numbers near 1 become huge, so the harm shows."""
    words = struct.unpack(f"<{len(payload) // 4}I", payload)
    return struct.pack(f"<{len(words)}I", *(word ^ 0x4000_0000 for word in words))

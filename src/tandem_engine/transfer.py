"""The decode side of a KV transfer: knock, check every page, write it where it lands."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tandem_engine.kv_frames import (
    FrameError,
    FrameKind,
    Header,
    Knock,
    encode,
    parse_page,
    read_frame,
    reason_of,
)

__all__ = ["CONNECT_TIMEOUT_S", "Geometry", "KvAddress", "TransferError", "drop_pages", "pull_pages"]

CONNECT_TIMEOUT_S = 5.0
"""How long a decode engine tries to reach a prefill engine; vLLM 0.32 gives an unreachable one up after 5 s."""


class TransferError(Exception):
    """The pages did not come, or not as they should have; the text says which check failed."""


@dataclass(frozen=True, slots=True)
class KvAddress:
    """Where a prompt's pages are: a host and port, and there a `room` (rendezvous) or a handle (handoff)."""

    host: str
    port: int
    room: int | None = None
    engine_id: str | None = None
    request_id: str | None = None
    block_ids: tuple[int, ...] = ()

    @property
    def is_handle(self) -> bool:
        """True for a handoff: the pages exist already and wait for exactly one knock."""
        return self.request_id is not None

    def __str__(self) -> str:
        key = f"handle {self.request_id}" if self.is_handle else f"bootstrap_room {self.room}"
        return f"{key} at {self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Geometry:
    """The shape both sides must share: tokens per page and bytes per page."""

    page_size: int
    page_bytes: int


async def pull_pages(
    address: KvAddress, slots: Sequence[int], write: Callable[[int, bytes], None], geometry: Geometry, *,
    timeout_s: float, content: int | None = None,
) -> int:  # fmt: skip
    """Fills `slots` with the prompt's pages in order and returns how many came; acknowledged only when all are right.

    `write` takes a slot and a page's bytes. `timeout_s` bounds the wait for the header and for each page after it.
    `content` is the block hash that the last page must have. Raises TransferError for every failure: unreachable,
    refused, of other content, lost, late, short, out of order, damaged.
    """
    try:
        async with _knock(address, geometry, len(slots), content=content) as (reader, writer):
            async with asyncio.timeout(timeout_s):
                frame = await read_frame(reader)
            if frame.kind is FrameKind.REFUSED:
                raise TransferError(f"refused by the prefill engine: {reason_of(frame.body)}")
            if frame.kind is not FrameKind.HEADER:
                raise FrameError(f"{frame.kind.name} instead of a header")
            header = Header.parse(frame.body)
            if (header.pages, header.page_bytes) != (len(slots), geometry.page_bytes):
                raise TransferError(
                    f"{header.pages} pages of {header.page_bytes} bytes offered, "
                    f"{len(slots)} of {geometry.page_bytes} wanted"
                )
            received = await _receive(reader, slots, write, geometry, timeout_s)
            writer.write(encode(FrameKind.ACK))
            await writer.drain()
            return received
    except TimeoutError:
        raise TransferError(f"no answer within {timeout_s:g} s") from None
    except asyncio.IncompleteReadError:
        raise TransferError("the prefill engine closed the connection") from None
    except (OSError, FrameError) as error:
        raise TransferError(str(error)) from None


async def _receive(
    reader: asyncio.StreamReader, slots: Sequence[int], write: Callable[[int, bytes], None], geometry: Geometry,
    timeout_s: float,
) -> int:  # fmt: skip
    received = 0
    while True:
        async with asyncio.timeout(timeout_s):
            frame = await read_frame(reader)
        if frame.kind is FrameKind.END:
            break
        if frame.kind is FrameKind.REFUSED:
            raise TransferError(f"the prefill engine gave up after {received} pages: {reason_of(frame.body)}")
        if frame.kind is not FrameKind.PAGE:
            raise FrameError(f"{frame.kind.name} instead of a page")
        index, payload = parse_page(frame.body)
        if index != received or index >= len(slots):
            raise TransferError(f"page {index} came where page {received} of {len(slots)} was due")
        if len(payload) != geometry.page_bytes:
            raise TransferError(f"page {index} has {len(payload)} bytes instead of {geometry.page_bytes}")
        write(slots[index], payload)
        received += 1
    if received != len(slots):
        raise TransferError(f"{received} pages came instead of {len(slots)}")
    return received


async def drop_pages(address: KvAddress, geometry: Geometry) -> bool:
    """Tells the prefill engine that nobody will come for this handle; False when it could not be told."""
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            async with _knock(address, geometry, len(address.block_ids), drop=True) as (reader, _):
                return (await read_frame(reader)).kind is FrameKind.END
    except (TimeoutError, OSError, FrameError, TransferError, asyncio.IncompleteReadError):
        return False


@asynccontextmanager
async def _knock(
    address: KvAddress, geometry: Geometry, pages: int, *, content: int | None = None, drop: bool = False
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(address.host.strip("[]"), address.port)
    except (TimeoutError, OSError) as error:
        raise TransferError(f"{address.host}:{address.port} cannot be reached: {error or 'timeout'}") from None
    try:
        knock = Knock(
            page_size=geometry.page_size,
            page_bytes=geometry.page_bytes,
            pages=pages,
            room=address.room,
            engine_id=address.engine_id,
            request_id=address.request_id,
            block_ids=address.block_ids,
            content=content,
            drop=drop,
        )
        writer.write(knock.pack())
        await writer.drain()
        yield reader, writer
    finally:
        # Not awaited: whoever cancels a transfer wants it over now, and the peer learns it from the closing itself.
        writer.close()

"""Where the legs of a pair find each other across scripted engines: the bootstrap server, without its bytes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

__all__ = ["DuplicateRoomError", "Meeting", "TransferFailedError"]


class DuplicateRoomError(Exception):
    """Two live requests of one side are in one room: engines die of it."""


class TransferFailedError(Exception):
    """The other leg left, or never came."""


@dataclass(slots=True)
class _Room:
    sides: set[str] = field(default_factory=set)
    both: asyncio.Event = field(default_factory=asyncio.Event)
    delivered: asyncio.Event = field(default_factory=asyncio.Event)
    has_failed: bool = False


class Meeting:
    """Rooms of a rendezvous, and handles that a prefill leaves for one decode. A test's engines share one."""

    def __init__(self, *, is_mute: bool = False) -> None:
        """Args:
        is_mute: a leg does not hear that the other one left, as when a whole process hangs.
        """
        self._is_mute = is_mute
        self._rooms: dict[int, _Room] = {}
        self._handles: dict[str, asyncio.Event] = {}
        self.rooms_seen: list[int] = []
        """Every room that a prefill leg opened, in order."""

    @property
    def is_empty(self) -> bool:
        """Whether nobody is in any room."""
        return not self._rooms

    @contextlib.asynccontextmanager
    async def at(self, room: int, side: str, timeout_s: float) -> AsyncIterator[None]:
        """Be in a room from when both legs are there; raises DuplicateRoomError, TransferFailedError.

        side: "prefill" or "decode". A leg that leaves before the transfer was delivered fails the other one.
        """
        found = self._rooms.setdefault(room, _Room())
        if side in found.sides:
            raise DuplicateRoomError(f"bootstrap_room {room} is in use")
        found.sides.add(side)
        if side == "prefill":
            self.rooms_seen.append(room)
        if len(found.sides) == 2:
            found.both.set()
        try:
            try:
                async with asyncio.timeout(timeout_s):
                    await found.both.wait()
            except TimeoutError:
                raise TransferFailedError(f"nobody came to bootstrap_room {room} within {timeout_s:g} s") from None
            if found.has_failed:
                raise TransferFailedError(f"the other leg left bootstrap_room {room}")
            yield
        finally:
            if not found.delivered.is_set() and not self._is_mute:
                found.has_failed = True
                found.both.set()
                found.delivered.set()
            found.sides.discard(side)
            if not found.sides:
                self._rooms.pop(room, None)

    def deliver(self, room: int) -> None:
        """The prefill's pages are with the decode leg."""
        found = self._rooms.get(room)
        if found is not None:
            found.delivered.set()

    async def delivered(self, room: int) -> None:
        """Wait for the pages; raises TransferFailedError."""
        found = self._rooms[room]
        await found.delivered.wait()
        if found.has_failed:
            raise TransferFailedError(f"the other leg left bootstrap_room {room}")

    def offer(self, handle: str) -> None:
        """Keep blocks for the decode leg that asks for them."""
        self._handles.setdefault(handle, asyncio.Event()).set()

    async def fetch(self, handle: str) -> None:
        """Take blocks once; waits for ever for a prefill that never comes, as Mooncake does."""
        await self._handles.setdefault(handle, asyncio.Event()).wait()
        self._handles.pop(handle, None)

    def has(self, handle: str) -> bool:
        """Whether blocks are kept under that handle."""
        event = self._handles.get(handle)
        return event is not None and event.is_set()

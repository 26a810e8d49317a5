"""How KV pages go from one scripted engine to another: rooms and handles at the source, a fetch at the target.

A room belongs to a rendezvous: decode knocks, prefill then writes into decode's memory. Memory that has been freed
while a page was on its way is a recorded violation at the target: that is what corrupts neighbours in real engines.
A handle belongs to a handoff: decode pulls once and then gives it back; a handle nobody pulls goes with its lease.
A transfer is a handle that the router named (Mooncake): decode asks for it, prefill writes it and then frees it itself.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from tandem_router.testing.scripted_kv_messages import Fetch, Fetched, Knock, KvFailed, Page, PagesDone, Pull, Release
from tandem_router.testing.scripted_wire import EngineLedger, EngineScript, Faults
from tandem_router.testing.virtual_network import Endpoint, Receiver

__all__ = ["Handle", "KvFetch", "KvSource", "Room"]

Pause = Callable[[float], Awaitable[None]]


@dataclass(slots=True)
class Room:
    """One bootstrap room while its prefill request lives."""

    number: int
    knocked: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Decode has everything, or is gone."""
    endpoint: Endpoint | None = None
    is_fetched: bool = False


@dataclass(slots=True)
class Handle:
    """Blocks that wait for one decode."""

    pages: list[bytes]
    lease: asyncio.TimerHandle
    engine_id: str = ""
    """Of the rank that holds a transfer."""
    puller: asyncio.Task[None] | None = None


class KvSource:
    """The prefill side of one process: listens at the bootstrap address."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        script: EngineScript,
        faults: Faults,
        ledger: EngineLedger,
        pause: Pause,
        endpoints: dict[Endpoint, None],
        engine_ids: frozenset[str],
    ) -> None:
        """Args:
        engine_ids: of the process's ranks, as decodes ask for them.
        """
        self._engine_ids = engine_ids
        self._waiting: dict[str, Endpoint] = {}
        self._loop = loop
        self._script = script
        self._faults = faults
        self._ledger = ledger
        self._pause = pause
        self._endpoints = endpoints
        self._rooms: dict[int, Room] = {}
        self._early: dict[int, Endpoint] = {}
        self._handles: dict[str, Handle] = {}
        self._gone: dict[str, str] = {}
        self._handles_made = 0

    def accept(self, endpoint: Endpoint) -> Receiver:
        """A decode connects."""
        self._endpoints[endpoint] = None
        return _SourcePeer(self, endpoint)

    # --- rooms

    def open_room(self, number: int) -> Room:
        """A room for a prefill request; the same number twice at once is what crashes SGLang."""
        if number in self._rooms:
            self._ledger.violations.append(f"duplicate room {number} at a prefill")
        room = Room(number)
        self._rooms[number] = room
        self._ledger.rooms += 1
        early = self._early.pop(number, None)
        if early is not None:
            room.endpoint = early
            room.knocked.set()
        return room

    def close_room(self, room: Room) -> None:
        """The prefill request has ended; a decode that still waits is told."""
        if self._rooms.get(room.number) is room:
            del self._rooms[room.number]
        self._ledger.rooms -= 1
        if room.endpoint is not None:
            if not room.is_fetched:
                room.endpoint.send(KvFailed("the prefill request ended before its pages were fetched"))
            room.endpoint.close()
            self._endpoints.pop(room.endpoint, None)

    def knock(self, number: int, endpoint: Endpoint) -> None:
        """A decode is ready; it may come before the prefill request."""
        room = self._rooms.get(number)
        if room is None:
            self._early[number] = endpoint
        elif room.endpoint is not None:
            self._ledger.violations.append(f"two decodes knock at room {number}")
        else:
            room.endpoint = endpoint
            room.knocked.set()

    def fetched(self, endpoint: Endpoint) -> None:
        """The decode at this connection has all pages."""
        for room in self._rooms.values():
            if room.endpoint is endpoint:
                room.is_fetched = True
                room.ended.set()

    def left(self, endpoint: Endpoint) -> None:
        """The decode at this connection is gone."""
        self._endpoints.pop(endpoint, None)
        for number, early in list(self._early.items()):
            if early is endpoint:
                del self._early[number]
        for transfer_id, waiting in list(self._waiting.items()):
            if waiting is endpoint:
                del self._waiting[transfer_id]
        for room in self._rooms.values():
            if room.endpoint is endpoint:
                room.ended.set()

    async def send_pages(self, endpoint: Endpoint, pages: list[bytes]) -> bool:
        """Send page by page; False when the transfer broke off."""
        for index, page in enumerate(pages):
            await self._pause(self._script.page_s)
            if self._faults.is_transfer_failing and index >= len(pages) // 2:
                return False
            if index == self._faults.lost_page:
                continue
            content = page if index != self._faults.flipped_page else bytes([page[0] ^ 1]) + page[1:]
            if not endpoint.send(Page(index, content)):
                return False
            self._ledger.pages_sent += 1
        return endpoint.send(PagesDone())

    # --- handles

    def hold(self, pages: list[bytes]) -> str:
        """Keep the pages under a new handle until released or until the lease is over. They count in held_pages."""
        self._handles_made += 1
        name = f"kv-{self._handles_made}"
        self._keep(name, pages, "")
        return name

    def _keep(self, name: str, pages: list[bytes], engine_id: str) -> None:
        lease = self._loop.call_later(self._script.handle_lease_s, self._expire, name)
        self._handles[name] = Handle(pages, lease, engine_id)
        self._ledger.handles += 1
        self._ledger.held_pages += len(pages)

    def pull(self, name: str, endpoint: Endpoint) -> None:
        """Send the pages of a handle; the second time is refused and recorded."""
        handle = self._handles.get(name)
        if handle is None or handle.puller is not None:
            if handle is not None or self._gone.get(name) == "released":
                self._ledger.violations.append(f"handle {name} is used twice")
            endpoint.send(KvFailed(f"no such blocks: {name}"))
            return
        handle.puller = self._loop.create_task(self._serve_pull(handle, endpoint), name=f"pull {name}")

    def offer(self, transfer_id: str, pages: list[bytes], engine_id: str) -> None:
        """Keep the pages of a transfer that the router has named, until they are written or the lease is over."""
        if transfer_id in self._handles or transfer_id in self._gone:
            self._ledger.violations.append(f"transfer {transfer_id} is named twice")
            return
        self._keep(transfer_id, pages, engine_id)
        waiting = self._waiting.pop(transfer_id, None)
        if waiting is not None:
            self.fetch(Fetch(transfer_id, engine_id), waiting)

    def fetch(self, asked: Fetch, endpoint: Endpoint) -> None:
        """Write a transfer's pages. One that is not there is waited for without a word, as Mooncake does."""
        name = asked.transfer_id
        handle = self._handles.get(name)
        if asked.engine_id not in self._engine_ids:
            endpoint.send(KvFailed(f"engine id {asked.engine_id} was not found"))
        elif handle is None:
            if self._gone.get(name) == "released":
                self._ledger.violations.append(f"transfer {name} is fetched twice")
            self._waiting[name] = endpoint
        elif handle.puller is not None or handle.engine_id != asked.engine_id:
            self._ledger.violations.append(f"transfer {name} of {handle.engine_id} is asked of {asked.engine_id} again")
        else:
            handle.puller = self._loop.create_task(self._write(name, handle, endpoint), name=f"write {name}")

    async def _write(self, name: str, handle: Handle, endpoint: Endpoint) -> None:
        is_whole = await self.send_pages(endpoint, handle.pages)
        if not is_whole and not endpoint.is_closed:
            endpoint.send(KvFailed("the transfer broke off"))  # the pages stay until the lease is over
            return
        handle.puller = None  # it is us
        self._drop(name, "released")

    async def _serve_pull(self, handle: Handle, endpoint: Endpoint) -> None:
        if not await self.send_pages(endpoint, handle.pages):
            endpoint.send(KvFailed("the transfer broke off"))

    def release(self, name: str) -> None:
        """Free a handle; one that is gone already is nothing."""
        self._drop(name, "released")

    def _expire(self, name: str) -> None:
        self._ledger.handles_expired += 1
        self._drop(name, "expired")

    def _drop(self, name: str, how: str) -> None:
        handle = self._handles.pop(name, None)
        if handle is None:
            return
        self._gone[name] = how
        handle.lease.cancel()
        if handle.puller is not None:
            handle.puller.cancel()
        if how == "released":
            self._ledger.handles_released += 1
        self._ledger.handles -= 1
        self._ledger.held_pages -= len(handle.pages)

    def die(self) -> None:
        """The process is gone, and all timers and tasks with it."""
        for name in list(self._handles):
            self._drop(name, "dead")


class _SourcePeer:
    def __init__(self, source: KvSource, endpoint: Endpoint) -> None:
        self._source = source
        self._endpoint = endpoint

    def on_message(self, message: object) -> None:
        match message:
            case Knock(room):
                self._source.knock(room, self._endpoint)
            case Fetched():
                self._source.fetched(self._endpoint)
            case Pull(handle):
                self._source.pull(handle, self._endpoint)
            case Release(handle):
                self._source.release(handle)
            case Fetch():
                self._source.fetch(message, self._endpoint)

    def on_closed(self) -> None:
        self._source.left(self._endpoint)


class KvFetch:
    """The decode side of one transfer."""

    def __init__(self, leg_id: str, ledger: EngineLedger) -> None:
        self._leg_id = leg_id
        self._ledger = ledger
        self._messages: deque[object] = deque()
        self._arrived = asyncio.Event()
        self.is_freed = False
        """The request was stopped by the router and its memory belongs to others now."""

    def on_message(self, message: object) -> None:
        if self.is_freed:
            if isinstance(message, Page):
                self._ledger.violations.append(f"a page was written into freed memory of leg {self._leg_id}")
            return
        self._messages.append(message)
        self._arrived.set()

    def on_closed(self) -> None:
        self._messages.append(None)
        self._arrived.set()

    async def next(self) -> object | None:
        """The next message from the source, or None when it is gone."""
        while not self._messages:
            self._arrived.clear()
            await self._arrived.wait()
        return self._messages.popleft()

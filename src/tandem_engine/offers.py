"""The prompts whose pages a prefill engine will hand out, each to one knock: rooms (rendezvous) and handles (handoff).

    OPEN --provide--> READY           a room opens before its pages exist; a handle is born READY
    OPEN | READY --take--> taken      by the one knock that matches
    any --settle(None | reason)-->    delivered, or not; the pages are released; the key is free again

An offer settles exactly once, whoever comes first: the knock's connection, the request that opened it, or its lease.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tandem_engine.requests import HeldPages

__all__ = ["DuplicateRoomError", "Offer", "Offers"]

Key = int | str


class DuplicateRoomError(Exception):
    """A live room of this number exists; an unmodified engine does not survive this (sglang issue 40125)."""


class Offer:
    """One prompt's pages, promised under `key` (a room number, or a handle's request id)."""

    def __init__(self, key: Key, release: Callable[[HeldPages], bool]) -> None:
        loop = asyncio.get_running_loop()
        self.key = key
        self.is_taken = False
        self.outcome: asyncio.Future[str | None] = loop.create_future()
        """None when the decode engine acknowledged every page, else why it did not get them."""
        self._release = release
        self._provided: asyncio.Future[HeldPages | None] = loop.create_future()

    @property
    def held(self) -> HeldPages | None:
        """The pages, once they exist and while the offer is open."""
        return self._provided.result() if self._provided.done() else None

    def provide(self, held: HeldPages) -> None:
        """Makes the pages available; gives them back at once when the offer was settled meanwhile."""
        if self.outcome.done():
            self._release(held)
        else:
            self._provided.set_result(held)

    async def pages(self) -> HeldPages | None:
        """The pages as soon as they exist, None when the offer was settled before that."""
        return await asyncio.shield(self._provided)

    def settle(self, reason: str | None) -> None:
        """Ends the offer and releases its pages. Later calls change nothing."""
        if self.outcome.done():
            return
        self.outcome.set_result(reason)
        if self._provided.done():
            held = self._provided.result()
            if held is not None:
                self._release(held)
        else:
            self._provided.set_result(None)


class Offers:
    """All open offers of one engine. Keys are unique while an offer lives."""

    def __init__(self, release: Callable[[HeldPages], bool]) -> None:
        self._release = release
        self._open: dict[Key, Offer] = {}
        self._awaited: dict[Key, asyncio.Future[Offer]] = {}

    def __len__(self) -> int:
        return len(self._open)

    @property
    def taken(self) -> int:
        """Open offers that a decode engine has knocked for."""
        return sum(offer.is_taken for offer in self._open.values())

    def open(self, key: Key) -> Offer:
        """A new offer. Raises DuplicateRoomError when `key` is live."""
        if key in self._open:
            raise DuplicateRoomError(f"bootstrap_room {key} is in use")
        offer = self._open[key] = Offer(key, self._release)
        offer.outcome.add_done_callback(lambda _: self._open.pop(key, None))
        awaited = self._awaited.pop(key, None)
        if awaited is not None and not awaited.done():
            awaited.set_result(offer)
        return offer

    def open_handle(self, key: str, held: HeldPages, lease_s: float) -> Offer:
        """An offer of pages that exist; nobody's knock within `lease_s` ends it."""
        offer = self.open(key)
        offer.provide(held)
        timer = asyncio.get_running_loop().call_later(lease_s, offer.settle, f"nobody came within {lease_s:g} s")
        offer.outcome.add_done_callback(lambda _: timer.cancel())
        return offer

    def get(self, key: Key) -> Offer | None:
        return self._open.get(key)

    async def awaited(self, key: Key) -> Offer:
        """The offer under `key` as soon as it is opened. DuplicateRoomError when someone waits for it already."""
        if key in self._open:
            return self._open[key]
        if key in self._awaited:
            raise DuplicateRoomError(f"bootstrap_room {key} is awaited by another knock")
        arrival: asyncio.Future[Offer] = asyncio.get_running_loop().create_future()
        self._awaited[key] = arrival
        try:
            return await arrival
        finally:
            if self._awaited.get(key) is arrival:
                del self._awaited[key]

    def outcomes(self) -> list[asyncio.Future[str | None]]:
        """One future per open offer, done when it is settled."""
        return [offer.outcome for offer in self._open.values()]

    def settle_all(self, reason: str) -> None:
        for offer in list(self._open.values()):
            offer.settle(reason)

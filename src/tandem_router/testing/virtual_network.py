"""A network in virtual time: addresses, ordered connections, latency from a seed, and connections that break.

One connection keeps its order both ways, as TCP does; different connections overtake each other. When one end closes,
what it had already sent still arrives and then the other end is told; what was on its way towards it is lost. That is
how a request comes to be "written and never answered": the writer cannot know.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Protocol

from tandem_router.ports import Rng

__all__ = ["Connection", "Endpoint", "Link", "Listener", "Receiver", "Refused", "VirtualNetwork"]


class Refused(Exception):
    """Nobody listens at the address."""


class Receiver(Protocol):
    """One side's program, as its end of a connection sees it. Called from the loop, must not block."""

    def on_message(self, message: object) -> None:
        """The next message, in the order in which they were sent."""

    def on_closed(self) -> None:
        """The other end has closed or died; called once, after the last message, and not after an own `close`."""


class Listener(Protocol):
    """A program that accepts connections."""

    def accept(self, endpoint: Endpoint) -> Receiver:
        """What receives at the server's end of a new connection."""


@dataclass(frozen=True, slots=True)
class Link:
    """How long a message takes: uniformly between the two, in seconds."""

    min_s: float = 0.0001
    max_s: float = 0.0006


class VirtualNetwork:
    """Addresses ("host:port") and who listens there."""

    def __init__(self, loop: asyncio.AbstractEventLoop, rng: Rng, link: Link | None = None) -> None:
        self.loop = loop
        self._rng = rng
        self._link = link or Link()
        self._listeners: dict[str, Listener] = {}

    def listen(self, address: str, listener: Listener) -> None:
        """Accept connections at an address; ValueError when another does."""
        if address in self._listeners:
            raise ValueError(f"{address} is in use")
        self._listeners[address] = listener

    def unlisten(self, address: str) -> None:
        """Refuse connections from now on; idempotent."""
        self._listeners.pop(address, None)

    def latency_s(self) -> float:
        """A fresh draw: how long the next message takes."""
        return self._link.min_s + (self._link.max_s - self._link.min_s) * self._rng.random()

    async def connect(self, address: str, receiver: Receiver) -> Endpoint:
        """The client's end of a new connection, after a round trip; raises Refused after the same time."""
        await asyncio.sleep(self.latency_s())
        listener = self._listeners.get(address)
        if listener is None:
            await asyncio.sleep(self.latency_s())
            raise Refused(address)
        connection = Connection(self)
        connection.server.receiver = listener.accept(connection.server)
        connection.client.receiver = receiver
        try:
            await asyncio.sleep(self.latency_s())
        except asyncio.CancelledError:
            connection.client.close()
            raise
        if connection.server.is_closed:
            # The server died while its answer was under way: the reset overtakes nothing and nobody has written yet.
            connection.client.close()
            raise Refused(address)
        return connection.client


class Connection:
    """Two ends."""

    def __init__(self, network: VirtualNetwork) -> None:
        self.client = Endpoint(network)
        self.server = Endpoint(network)
        self.client.peer = self.server
        self.server.peer = self.client


class Endpoint:
    """One end of a connection."""

    peer: Endpoint
    receiver: Receiver

    def __init__(self, network: VirtualNetwork) -> None:
        self._network = network
        self._inbox: deque[object] = deque()
        self._last_arrival_s = 0.0
        self._keeps_hearing = False
        self.is_closed = False
        """We closed, or have been told that the other end did."""

    def send(self, message: object) -> bool:
        """Put a message on its way; False when this end knows that the connection is over.

        True promises nothing: the other end may be dead already.
        """
        if self.is_closed:
            return False
        self.peer._deliver_later(message)
        return True

    def close(self, *, keep_hearing: bool = False) -> None:
        """End the connection: what was sent arrives, then the other end is told. Idempotent.

        keep_hearing: still hand what is on its way to our receiver, as memory is still written to by a remote DMA.
        """
        if self.is_closed:
            return
        self.is_closed = True
        self._keeps_hearing = keep_hearing
        if not keep_hearing:
            self._inbox.clear()
        self.peer._deliver_later(_CLOSED)

    def _deliver_later(self, message: object) -> None:
        # Timers of one instant run in any order, so a timer delivers the oldest message and not its own.
        arrival_s = max(self._last_arrival_s, self._network.loop.time() + self._network.latency_s())
        self._last_arrival_s = arrival_s
        self._inbox.append(message)
        self._network.loop.call_at(arrival_s, self._deliver_oldest)

    def _deliver_oldest(self) -> None:
        if not self._inbox or (self.is_closed and not self._keeps_hearing):
            return
        message = self._inbox.popleft()
        if message is _CLOSED:
            was_closed, self.is_closed, self._keeps_hearing = self.is_closed, True, False
            self._inbox.clear()
            if not was_closed:
                self.receiver.on_closed()
        else:
            self.receiver.on_message(message)


_CLOSED = object()

"""The router's side of a connection to a scripted engine: ports.EngineClient and EngineCall over the virtual network.

Like a gRPC channel, a client whose connection broke connects again at the next call, and may then find another life of
the process at the same address.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import Sequence
from typing import cast

from tandem_router.errors import Code, Reason
from tandem_router.model.embedding import EmbedLeg, Vector
from tandem_router.model.failure import EngineFailure
from tandem_router.model.kv_events import KvBatch
from tandem_router.model.operations import Operated, Operation
from tandem_router.model.request import LegRequest
from tandem_router.model.stream import EngineItem
from tandem_router.model.worker import RankLoad, WorkerFacts
from tandem_router.testing.scripted_wire import CancelCall, Item, OpenCall, Reply, StreamEnd, UnaryCall
from tandem_router.testing.virtual_network import Endpoint, Refused, VirtualNetwork

__all__ = ["ScriptedCall", "ScriptedClient", "ScriptedKvEvents", "scripted_vector"]

_PATIENCE_S = 3600.0
"""Virtual seconds after which a call without a deadline is given up: only a fault of the simulation waits so long."""
_DIMENSIONS = 8


def scripted_vector(leg: EmbedLeg) -> Vector:
    """What every scripted engine answers: values in [-1, 1) from a hash over the prompt and its adapters."""
    adapters = ";".join(f"{adapter.name}*{adapter.scale:g}" for adapter in leg.adapters)
    said = f"{','.join(str(token) for token in leg.token_ids)}|{adapters}"
    digest = hashlib.blake2b(said.encode(), digest_size=_DIMENSIONS).digest()
    return Vector(tuple(byte / 128 - 1 for byte in digest), len(leg.token_ids))


def _unreachable(address: str) -> EngineFailure:
    return EngineFailure(
        Reason.WORKER_UNREACHABLE, f"{address} refused the connection", was_sent=False, connection_lost=True
    )


def _lost(address: str) -> EngineFailure:
    return EngineFailure(Reason.WORKER_LOST, f"the connection to {address} broke", connection_lost=True)


class ScriptedClient:
    """One worker as the router holds it. ports.EngineClient."""

    def __init__(self, network: VirtualNetwork, address: str) -> None:
        self._network = network
        self._address = address
        self._endpoint: Endpoint | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._unsent: deque[OpenCall | UnaryCall] = deque()
        self._calls: dict[int, ScriptedCall] = {}
        self._unary: dict[int, asyncio.Future[object]] = {}
        self._calls_made = 0
        self.violations: list[str] = []
        """What the router must not do to a client."""
        self.is_closed = False
        self.last_sign_of_life_s: float | None = None
        """When an item or a vector last came."""

    async def connect(self) -> None:
        """Connect now; raises EngineFailure(WORKER_UNREACHABLE)."""
        try:
            self._endpoint = await self._network.connect(self._address, self)
        except Refused:
            raise _unreachable(self._address) from None

    # --- ports.EngineClient

    def generate(self, leg: LegRequest, *, timeout_s: float | None) -> ScriptedCall:
        """Write the request; failures come out of `receive`."""
        self._calls_made += 1
        call = ScriptedCall(self, self._calls_made)
        self._calls[call.id] = call
        if self.is_closed:
            self.violations.append(f"leg {leg.leg_id} is sent over a closed client")
            call.end(EngineFailure(Reason.WORKER_UNREACHABLE, "the client is closed", was_sent=False))
            return call
        if timeout_s is not None:
            call.arm(self._network.loop, timeout_s)
        self._write(OpenCall(call.id, leg, timeout_s))
        return call

    async def embed(self, leg: EmbedLeg, *, timeout_s: float | None) -> Vector:
        """A vector that is a function of the prompt and its adapters alone."""
        await self._ask("embed", leg.leg_id, _PATIENCE_S if timeout_s is None else timeout_s)
        self.last_sign_of_life_s = self._network.loop.time()
        return scripted_vector(leg)

    async def operate(self, operation: Operation, *, timeout_s: float) -> Operated:
        """Flush its cache, or do what `scripted_adapters` can."""
        return cast("Operated", await self._ask("operate", operation, timeout_s))

    def kv_events(self, *, resume_at: int) -> ScriptedKvEvents:
        """A subscription that is refused: scripted engines publish nothing."""
        return ScriptedKvEvents(self._address)

    async def abort(self, leg_id: str, *, timeout_s: float) -> None:
        """The Abort rpc."""
        await self._ask("abort", leg_id, timeout_s)

    async def probe(self, *, timeout_s: float) -> None:
        """HealthCheck."""
        await self._ask("probe", "", timeout_s)

    async def describe(self, *, timeout_s: float) -> WorkerFacts:
        """GetModelInfo and GetServerInfo."""
        return cast("WorkerFacts", await self._ask("describe", "", timeout_s))

    async def loads(self, *, timeout_s: float) -> Sequence[RankLoad] | None:
        """GetLoads."""
        return cast("Sequence[RankLoad]", await self._ask("loads", "", timeout_s))

    async def fetch_tokenizer(self, *, timeout_s: float) -> bytes | None:
        """GetTokenizer: scripted engines have none."""
        await self._ask("tokenizer", "", timeout_s)
        return None

    async def close(self) -> None:
        """Close the connection; running calls fail."""
        self.is_closed = True
        if self._connecting is not None:
            self._connecting.cancel()
            await _ended(self._connecting)
        if self._endpoint is not None:
            self._endpoint.close()
        self._fail_all(EngineFailure(Reason.WORKER_LOST, "the router closed the connection"))

    # --- the connection

    def on_message(self, message: object) -> None:
        match message:
            case Item(call_id, item) if call_id in self._calls:
                self.last_sign_of_life_s = self._network.loop.time()
                self._calls[call_id].put(item)
            case StreamEnd(call_id, failure) if call_id in self._calls:
                self._calls[call_id].end(failure)
            case Reply(call_id, value, failure) if call_id in self._unary:
                future = self._unary.pop(call_id)
                if not future.done():
                    if failure is None:
                        future.set_result(value)
                    else:
                        future.set_exception(failure)

    def on_closed(self) -> None:
        self._endpoint = None
        self._fail_all(_lost(self._address))

    def _fail_all(self, failure: EngineFailure) -> None:
        for call in list(self._calls.values()):
            call.end(failure)
        for future in list(self._unary.values()):
            if not future.done():
                future.set_exception(failure)
        self._unary.clear()
        self._unsent.clear()

    def _write(self, message: OpenCall | UnaryCall) -> None:
        if self._endpoint is not None and self._endpoint.send(message):
            return
        self._unsent.append(message)
        if self._connecting is None or self._connecting.done():
            self._connecting = self._network.loop.create_task(self._reconnect(), name=f"reconnect {self._address}")

    async def _reconnect(self) -> None:
        try:
            await self.connect()
        except EngineFailure as failure:
            self._fail_all(failure)
            return
        assert self._endpoint is not None
        while self._unsent:
            message = self._unsent.popleft()
            if message.call_id in self._calls or message.call_id in self._unary:
                self._endpoint.send(message)

    async def _ask(self, method: str, argument: str | Operation, timeout_s: float) -> object:
        if self.is_closed:
            raise EngineFailure(Reason.WORKER_UNREACHABLE, "the client is closed", was_sent=False)
        self._calls_made += 1
        call_id = self._calls_made
        future: asyncio.Future[object] = self._network.loop.create_future()
        self._unary[call_id] = future
        self._write(UnaryCall(call_id, method, argument))
        try:
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError:
            raise EngineFailure(
                Reason.WORKER_UNREACHABLE, f"{method} was not answered in {timeout_s} s", code=Code.DEADLINE_EXCEEDED
            ) from None
        finally:
            self._unary.pop(call_id, None)

    def forget(self, call: ScriptedCall, *, is_cancelled: bool) -> None:
        """A call has ended on our side; a cancelled one is reset at the engine as well."""
        self._calls.pop(call.id, None)
        if is_cancelled and self._endpoint is not None:
            self._endpoint.send(CancelCall(call.id))

    def __repr__(self) -> str:
        return f"<ScriptedClient {self._address} {len(self._calls)} calls>"


async def _ended(task: asyncio.Task[None]) -> None:
    try:
        await task
    except asyncio.CancelledError:
        current = asyncio.current_task()
        if current is not None and current.cancelling():
            raise


class ScriptedKvEvents:
    """A refused subscription. ports.KvEventCall."""

    def __init__(self, address: str) -> None:
        self._address = address

    async def receive(self) -> KvBatch | None:
        """Raises EngineFailure(RUNTIME_CANNOT_PUBLISH_KV_EVENTS)."""
        raise EngineFailure(
            Reason.RUNTIME_CANNOT_PUBLISH_KV_EVENTS,
            f"{self._address} is a scripted engine",
            code=Code.UNIMPLEMENTED,
        )

    def cancel(self) -> None:
        """Nothing runs."""


class ScriptedCall:
    """One generate call. ports.EngineCall."""

    def __init__(self, client: ScriptedClient, call_id: int) -> None:
        self.id = call_id
        self._client = client
        self._items: deque[EngineItem] = deque()
        self._news = asyncio.Event()
        self._is_over = False
        self._failure: EngineFailure | None = None
        self._deadline: asyncio.TimerHandle | None = None

    async def receive(self) -> EngineItem | None:
        """The next item, or None after the last; raises EngineFailure."""
        while not self._items and not self._is_over:
            self._news.clear()
            await self._news.wait()
        if self._items:
            return self._items.popleft()
        if self._failure is not None:
            raise self._failure
        return None

    def cancel(self) -> None:
        """RST_STREAM; idempotent. What arrived before is dropped, as a reset stream's is."""
        if self._is_over:
            return
        self._items.clear()
        self._client.forget(self, is_cancelled=True)
        self.end(EngineFailure(Reason.REQUEST_CANCELLED, "cancelled by the router", code=Code.CANCELLED))

    def arm(self, loop: asyncio.AbstractEventLoop, timeout_s: float) -> None:
        """Let the call end by itself after that long (grpc-timeout)."""
        self._deadline = loop.call_later(
            timeout_s,
            self.end,
            EngineFailure(Reason.TOTAL_TIMEOUT, "the call's deadline passed", code=Code.DEADLINE_EXCEEDED),
        )

    def put(self, item: EngineItem) -> None:
        """An item has arrived."""
        self._items.append(item)
        self._news.set()

    def end(self, failure: EngineFailure | None) -> None:
        """The stream is over; the first end counts."""
        if self._is_over:
            return
        self._is_over = True
        self._failure = failure
        self._client.forget(self, is_cancelled=False)
        if self._deadline is not None:
            self._deadline.cancel()
        self._news.set()

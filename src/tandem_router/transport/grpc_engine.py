"""`EngineClient` over grpcio and a dialect: the reference body of the token path."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import grpc.aio
from google.protobuf.message import Message

from tandem_router.engines.contract import Dialect
from tandem_router.engines.guards import engine_status_failure
from tandem_router.errors import Code, Reason
from tandem_router.model.adapters import LoadedAdapter
from tandem_router.model.embedding import EmbedLeg, Vector
from tandem_router.model.failure import EngineFailure
from tandem_router.model.operations import CANNOT, ListAdapters, Operated, Operation
from tandem_router.model.request import LegRequest
from tandem_router.model.worker import Credentials, RankLoad, WorkerFacts
from tandem_router.transport.archive import collect_archive
from tandem_router.transport.channels import Metadata, call_metadata
from tandem_router.transport.connection import Connection
from tandem_router.transport.failures import is_late, unsent
from tandem_router.transport.grpc_call import GrpcCall
from tandem_router.transport.grpc_kv_events import GrpcKvEventCall
from tandem_router.transport.life import Life, limit, serialize
from tandem_router.transport.statusless import on_channel

__all__ = ["GrpcEngine"]

_CONNECT_TIMEOUT_S = 5.0
_NO_TOKENIZER = (Code.UNIMPLEMENTED, Code.NOT_FOUND, Code.FAILED_PRECONDITION)


class GrpcEngine:
    """One worker process in one life.

    When the connection breaks and another process answers at the address, the next `probe` or `generate` fails once
    with connection_lost, so that the control loop learns of the new life; then the client serves the new process.
    """

    def __init__(
        self,
        connection: Connection,
        dialect: Dialect,
        credentials: Credentials | None,
        *,
        connect_timeout_s: float | None,
    ) -> None:
        """Args:
        connection: ready; owned from now on.
        connect_timeout_s: for reconnecting; None = 5 s.
        """
        self._connection = connection
        self._dialect = dialect
        self._life = Life(connection, dialect, call_metadata(credentials), connect_timeout_s or _CONNECT_TIMEOUT_S)
        # Responses are parsed by us: grpc.aio turns one that cannot be parsed into None and logs a traceback.
        self._generate: grpc.aio.UnaryStreamMultiCallable[Message, bytes] = connection.channel.unary_stream(
            dialect.methods.generate.path, request_serializer=serialize
        )
        self._facts: WorkerFacts | None = None

    @property
    def connection(self) -> Connection:
        """How the worker is reached."""
        return self._connection

    @property
    def dialect(self) -> Dialect:
        """What the worker speaks."""
        return self._dialect

    @property
    def last_sign_of_life_s(self) -> float | None:
        """Loop clock when the engine's own work was last seen, None before."""
        return self._life.seen_s

    def generate(self, leg: LegRequest, *, timeout_s: float | None) -> GrpcCall:
        """Write the request at once where the connection stands, else when `receive` has made it stand again.

        Raises TandemError where the dialect refuses the leg.
        """
        request = self._dialect.generate_request(leg, self._facts)
        metadata = (*self._life.metadata, *_forwarded(leg))
        deadline_s = None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s

        def start() -> Any:
            left_s = None if deadline_s is None else max(0.0, deadline_s - asyncio.get_running_loop().time())
            return self._generate(request, timeout=left_s, metadata=metadata)

        async def reconnect() -> None:
            await self._life.settle(timeout_s, reports_loss=True)

        return GrpcCall(self._life, leg, start, None if self._life.is_open else reconnect, deadline_s)

    async def embed(self, leg: EmbedLeg, *, timeout_s: float | None) -> Vector:
        """One vector; raises EngineFailure, and TandemError where the dialect refuses the leg."""
        embed, where = self._dialect.embed, self._connection.where
        if embed is None:
            raise _cannot(Reason.RUNTIME_CANNOT_EMBED, f"{where}: {self._dialect.runtime_type} has no such rpc")
        request = embed.request(leg, self._facts)
        deadline_s = None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s
        try:
            await self._life.settle(timeout_s, reports_loss=True)
        except EngineFailure as failure:
            raise unsent(failure) from None
        left_s = None if deadline_s is None else max(0.001, deadline_s - asyncio.get_running_loop().time())
        try:
            answer = await self._life.unary_with(embed.rpc, request, left_s, _forwarded(leg))
        except EngineFailure as failure:
            if failure.code is Code.UNIMPLEMENTED:
                raise _cannot(Reason.RUNTIME_CANNOT_EMBED, failure.sentence) from None
            if is_late(failure.code, deadline_s):
                sentence = f"{where}: the leg outlived its deadline"
                raise EngineFailure(Reason.TOTAL_TIMEOUT, sentence, code=failure.code) from None
            if failure.connection_lost or failure.reason is Reason.ENGINE_PROTOCOL_ERROR:
                raise
            raise engine_status_failure(failure.code, failure.sentence) from None
        vector = embed.vector(answer)
        self._life.seen()
        return vector

    async def operate(self, operation: Operation, *, timeout_s: float) -> Operated:
        """Have the engine do something; raises EngineFailure, `operations.CANNOT` where it has no such rpc.

        Raises TandemError where the dialect refuses the operation.
        """
        kind = type(operation)
        carried = self._dialect.operations.get(kind)
        if carried is None:
            sentence = f"{self._connection.where}: {self._dialect.runtime_type} has no rpc for {kind.__name__}"
            raise _cannot(CANNOT[kind], sentence)
        try:
            answer = await self._life.unary(carried.rpc, carried.request(operation), timeout_s)
        except EngineFailure as failure:
            if failure.code is Code.UNIMPLEMENTED:
                raise _cannot(CANNOT[kind], failure.sentence) from None
            if failure.connection_lost:
                raise
            raise carried.failure(failure) from None
        done = carried.read(answer)
        if isinstance(operation, ListAdapters) and self._facts is not None:
            # The next leg may name what has been loaded since the facts were read.
            self._facts = replace(self._facts, adapters=done.adapters)
        return done

    def kv_events(self, *, resume_at: int) -> GrpcKvEventCall:
        """Subscribe; failures come out of `receive`."""
        return GrpcKvEventCall(self._life, self._dialect.kv_events, resume_at=resume_at)

    async def abort(self, leg_id: str, *, timeout_s: float) -> None:
        """Ask the engine to stop a leg; raises EngineFailure when it cannot be asked."""
        await self._life.unary(self._dialect.methods.abort, self._dialect.abort_request(leg_id), timeout_s)

    async def probe(self, *, timeout_s: float) -> None:
        """Return if the engine is alive and serving; raises EngineFailure."""
        methods = self._dialect.methods
        answer = await self._life.unary(methods.health, self._dialect.health_request(), timeout_s, reports_loss=True)
        self._dialect.check_health(answer)

    async def describe(self, *, timeout_s: float) -> WorkerFacts:
        """What the engine says of itself, and from now on the life that this client is for; raises EngineFailure."""
        self._life.forget()
        methods = self._dialect.methods
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        async with limit(timeout_s, f"{self._connection.where}: GetModelInfo and GetServerInfo"):
            model_info = await self._life.unary(methods.model_info, self._dialect.model_info_request(), timeout_s)
            asked_s = asyncio.get_running_loop().time()
            server_info = await self._life.unary(methods.server_info, self._dialect.server_info_request(), timeout_s)
        facts = self._dialect.facts(model_info, server_info)
        self._life.know(facts, server_info, asked_s)
        adapters = await self._loaded_adapters(deadline_s - asyncio.get_running_loop().time())
        self._facts = replace(
            facts,
            adapters=adapters,
            lists_adapters=ListAdapters in self._dialect.operations,
            reports_loads=methods.loads is not None,
            hands_out_tokenizer=methods.tokenizer is not None,
        )
        return self._facts

    async def _loaded_adapters(self, timeout_s: float) -> tuple[LoadedAdapter, ...]:
        """None where the engine cannot say, those known where it does not: neither is a fault of the worker."""
        if ListAdapters not in self._dialect.operations:
            return ()
        try:
            return (await self.operate(ListAdapters(), timeout_s=max(0.001, timeout_s))).adapters
        except EngineFailure as failure:
            if failure.connection_lost:
                raise
            return () if self._facts is None or failure.code is Code.UNIMPLEMENTED else self._facts.adapters

    async def loads(self, *, timeout_s: float) -> Sequence[RankLoad] | None:
        """Load per rank in rank order, or None where the engine has no such rpc; raises EngineFailure.

        Zeros of an engine that may be dead behind a living process are believed only when its health agrees.
        """
        rpc = self._dialect.methods.loads
        if rpc is None:
            return None
        try:
            answer = await self._life.unary(rpc, self._dialect.loads_request(), timeout_s)
        except EngineFailure as failure:
            if failure.code is Code.UNIMPLEMENTED:
                return None
            raise
        loads = self._dialect.loads(answer, asyncio.get_running_loop().time())
        is_idle = not any(load.running or load.waiting or load.used_tokens for load in loads)
        if is_idle and self._dialect.traits.zero_loads_may_be_dead:
            await self.probe(timeout_s=timeout_s)
        return loads

    async def fetch_tokenizer(self, *, timeout_s: float) -> bytes | None:
        """The tokenizer archive, its sha256 checked, or None where the engine has none; raises EngineFailure."""
        rpc = self._dialect.methods.tokenizer
        if rpc is None:
            return None
        where = self._connection.where
        async with limit(timeout_s, f"{where}: GetTokenizer"):
            await self._life.settle(timeout_s, reports_loss=False)
            stub: grpc.aio.UnaryStreamMultiCallable[Message, bytes] = self._connection.channel.unary_stream(
                rpc.path, request_serializer=serialize
            )
            deadline_s = asyncio.get_running_loop().time() + timeout_s
            with on_channel(self._connection):
                call = stub(self._dialect.tokenizer_request(), timeout=timeout_s, metadata=self._life.metadata)
            try:
                with on_channel(self._connection):
                    return await collect_archive(call, rpc, where)
            except grpc.aio.AioRpcError as error:
                failure = self._life.failure(error, rpc, timeout_s, deadline_s)
                if failure.code in _NO_TOKENIZER:
                    return None
                raise failure from None
            finally:
                call.cancel()

    async def close(self) -> None:
        """Close the connection; running calls fail."""
        await self._connection.close()


def _forwarded(leg: LegRequest | EmbedLeg) -> Metadata:
    return leg.metadata if leg.traceparent is None else (*leg.metadata, ("traceparent", leg.traceparent))


def _cannot(reason: Reason, sentence: str) -> EngineFailure:
    return EngineFailure(reason, sentence, code=Code.UNIMPLEMENTED)

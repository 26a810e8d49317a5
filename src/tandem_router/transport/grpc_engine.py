"""`EngineClient` over grpcio and a dialect: the reference body of the token path."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc.aio
from google.protobuf.message import DecodeError, Message

from tandem_router.engines.contract import Dialect, Rpc
from tandem_router.errors import Code, Reason
from tandem_router.model.failure import EngineFailure
from tandem_router.model.request import LegRequest
from tandem_router.model.worker import Credentials, RankLoad, WorkerFacts
from tandem_router.transport.channels import call_metadata
from tandem_router.transport.connection import Connection
from tandem_router.transport.failures import rpc_failure
from tandem_router.transport.grpc_call import GrpcCall

__all__ = ["GrpcEngine", "serialize"]

_CONNECT_TIMEOUT_S = 5.0
_SAME_BIRTH_S = 5.0
"""Two readings of a process's start may differ by the time an answer takes."""
_MAX_ARCHIVE_BYTES = 64 * 1024 * 1024
"""Compressed; the largest published tokenizers are about 10 MB zipped."""
_NO_TOKENIZER = (Code.UNIMPLEMENTED, Code.NOT_FOUND, Code.FAILED_PRECONDITION)


@dataclass(frozen=True, slots=True)
class _Identity:
    """What tells one process from its successor at the same address."""

    instance: str | None
    born_at_s: float | None
    """On the loop's clock."""

    def is_same(self, other: _Identity) -> bool:
        """Whether both readings are of one process; not when neither says anything."""
        if self.instance != other.instance:
            return False
        if self.born_at_s is not None and other.born_at_s is not None:
            return abs(self.born_at_s - other.born_at_s) <= _SAME_BIRTH_S
        return self.instance is not None


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
        self._connect_timeout_s = connect_timeout_s or _CONNECT_TIMEOUT_S
        self._metadata = call_metadata(credentials)
        # Responses are parsed by us: grpc.aio turns one that cannot be parsed into None and logs a traceback.
        self._generate: grpc.aio.UnaryStreamMultiCallable[Message, bytes] = connection.channel.unary_stream(
            dialect.methods.generate.path, request_serializer=serialize
        )
        self._settling = asyncio.Lock()
        self._is_settled = True
        self._identity: _Identity | None = None
        self._facts: WorkerFacts | None = None

    @property
    def connection(self) -> Connection:
        """How the worker is reached."""
        return self._connection

    @property
    def dialect(self) -> Dialect:
        """What the worker speaks."""
        return self._dialect

    def generate(self, leg: LegRequest, *, timeout_s: float | None) -> GrpcCall:
        """Write the request at once where the connection stands, else when `receive` has made it stand again.

        Raises TandemError where the dialect refuses the leg.
        """
        request = self._dialect.generate_request(leg, self._facts)
        metadata = (*self._metadata, *leg.metadata)
        if leg.traceparent is not None:
            metadata = (*metadata, ("traceparent", leg.traceparent))
        deadline_s = None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s

        def start() -> Any:
            left_s = None if deadline_s is None else max(0.0, deadline_s - asyncio.get_running_loop().time())
            return self._generate(request, timeout=left_s, metadata=metadata)

        async def reconnect() -> None:
            limit_s = self._connect_timeout_s if timeout_s is None else min(timeout_s, self._connect_timeout_s)
            await self._settle(limit_s, reports_loss=True)

        is_open = self._is_settled and self._connection.is_ready
        return GrpcCall(self._connection, self._dialect, leg, start, None if is_open else reconnect)

    async def abort(self, leg_id: str, *, timeout_s: float) -> None:
        """Ask the engine to stop a leg; raises EngineFailure when it cannot be asked."""
        await self._unary(self._dialect.methods.abort, self._dialect.abort_request(leg_id), timeout_s)

    async def probe(self, *, timeout_s: float) -> None:
        """Return if the engine is alive and serving; raises EngineFailure."""
        methods = self._dialect.methods
        answer = await self._unary(methods.health, self._dialect.health_request(), timeout_s, reports_loss=True)
        self._dialect.check_health(answer)

    async def describe(self, *, timeout_s: float) -> WorkerFacts:
        """What the engine says of itself, and from now on the life that this client is for; raises EngineFailure."""
        self._identity = None
        methods = self._dialect.methods
        async with _limit(timeout_s, f"{self._connection.where}: GetModelInfo and GetServerInfo"):
            model_info = await self._unary(methods.model_info, self._dialect.model_info_request(), timeout_s)
            server_info = await self._unary(methods.server_info, self._dialect.server_info_request(), timeout_s)
        facts = self._dialect.facts(model_info, server_info)
        self._identity = self._identity_in(facts, server_info)
        self._facts = facts
        return facts

    async def loads(self, *, timeout_s: float) -> Sequence[RankLoad] | None:
        """Load per rank in rank order, or None where the engine has no such rpc; raises EngineFailure.

        Zeros of an engine that may be dead behind a living process are believed only when its health agrees.
        """
        rpc = self._dialect.methods.loads
        if rpc is None:
            return None
        try:
            answer = await self._unary(rpc, self._dialect.loads_request(), timeout_s)
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
        async with _limit(timeout_s, f"{where}: GetTokenizer"):
            await self._settle(timeout_s, reports_loss=False)
            stub: grpc.aio.UnaryStreamMultiCallable[Message, bytes] = self._connection.channel.unary_stream(
                rpc.path, request_serializer=serialize
            )
            call = stub(self._dialect.tokenizer_request(), timeout=timeout_s, metadata=self._metadata)
            try:
                return await _collect_archive(call, rpc, where)
            except grpc.aio.AioRpcError as error:
                failure = self._unary_failure(error, rpc, timeout_s)
                if failure.code in _NO_TOKENIZER:
                    return None
                raise failure from None
            finally:
                call.cancel()

    async def close(self) -> None:
        """Close the connection; running calls fail."""
        await self._connection.close()

    async def _unary(self, rpc: Rpc, request: Message, timeout_s: float, *, reports_loss: bool = False) -> Any:
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + timeout_s
        await self._settle(timeout_s, reports_loss=reports_loss)
        return await self._ask(rpc, request, max(0.001, deadline_s - loop.time()))

    async def _ask(self, rpc: Rpc, request: Message, timeout_s: float) -> Any:
        stub: grpc.aio.UnaryUnaryMultiCallable[Message, bytes] = self._connection.channel.unary_unary(
            rpc.path, request_serializer=serialize
        )
        try:
            return rpc.response.FromString(await stub(request, timeout=timeout_s, metadata=self._metadata))
        except grpc.aio.AioRpcError as error:
            raise self._unary_failure(error, rpc, timeout_s) from None
        except DecodeError as error:
            raise EngineFailure(
                Reason.ENGINE_PROTOCOL_ERROR, f"{self._connection.where}: {rpc.path}: {error}", code=Code.INTERNAL
            ) from None

    def _unary_failure(self, error: grpc.aio.AioRpcError, rpc: Rpc, timeout_s: float) -> EngineFailure:
        connection = self._connection
        return rpc_failure(
            error,
            rpc=rpc.path.rpartition("/")[2],
            timeout_s=timeout_s,
            is_connected=connection.is_ready,
            where=connection.where,
        )

    async def _settle(self, timeout_s: float, *, reports_loss: bool) -> None:
        """Return when the connection stands and leads to the process that was described.

        reports_loss: this caller's failure reaches the control loop, so after it the new process may be served.
        """
        if self._is_settled and self._connection.is_ready:
            return
        async with _limit(timeout_s, f"{self._connection.where}: connecting", is_connecting=True), self._settling:
            if self._is_settled and self._connection.is_ready:
                return
            self._is_settled = False
            await self._connection.connect(timeout_s)
            known = self._identity
            if known is not None and not known.is_same(await self._read_identity(timeout_s)):
                if reports_loss:
                    self._identity = None
                raise EngineFailure(
                    Reason.WORKER_LOST,
                    f"{self._connection.where}: another process answers at this address",
                    was_sent=False,
                    connection_lost=True,
                )
            self._is_settled = True

    async def _read_identity(self, timeout_s: float) -> _Identity:
        methods = self._dialect.methods
        server_info = await self._ask(methods.server_info, self._dialect.server_info_request(), timeout_s)
        return self._identity_in(self._dialect.facts(methods.model_info.response(), server_info), server_info)

    def _identity_in(self, facts: WorkerFacts, server_info: Any) -> _Identity:
        age_s = self._dialect.process_age_s(server_info)
        now_s = asyncio.get_running_loop().time()
        return _Identity(facts.instance, None if age_s is None else now_s - age_s)


def serialize(message: Message) -> bytes:
    """The bytes of a request."""
    return message.SerializeToString()


async def _collect_archive(call: Any, rpc: Rpc, where: str) -> bytes:
    data = bytearray()
    digest = ""
    while (piece := await call.read()) is not grpc.aio.EOF:
        try:
            chunk: Any = rpc.response.FromString(piece)
        except DecodeError as error:
            raise EngineFailure(
                Reason.ENGINE_PROTOCOL_ERROR, f"{where}: {rpc.path}: {error}", code=Code.INTERNAL
            ) from None
        data += chunk.data
        digest = chunk.sha256 or digest
        if len(data) > _MAX_ARCHIVE_BYTES:
            raise EngineFailure(
                Reason.ENGINE_PROTOCOL_ERROR, f"{where}: the tokenizer archive exceeds {_MAX_ARCHIVE_BYTES} bytes"
            )
    if not digest or hashlib.sha256(data).hexdigest() != digest.lower():
        raise EngineFailure(
            Reason.ENGINE_PROTOCOL_ERROR, f"{where}: the tokenizer archive does not have the sha256 it came with"
        )
    return bytes(data)


@contextlib.asynccontextmanager
async def _limit(timeout_s: float, what: str, *, is_connecting: bool = False) -> AsyncIterator[None]:
    """`asyncio.timeout` whose lapse is an EngineFailure."""
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError:
        raise EngineFailure(
            Reason.WORKER_UNREACHABLE if is_connecting else Reason.ENGINE_ERROR,
            f"{what}: no answer within {timeout_s:g} s",
            code=Code.DEADLINE_EXCEEDED,
            was_sent=not is_connecting,
            connection_lost=is_connecting,
        ) from None

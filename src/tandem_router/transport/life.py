"""One process at one address in one life: unary calls to it, and the notice that another process answers there now."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc.aio
from google.protobuf.message import DecodeError, Message

from tandem_router.engines.contract import Dialect, Rpc
from tandem_router.errors import Code, Reason
from tandem_router.model.failure import EngineFailure
from tandem_router.model.worker import WorkerFacts
from tandem_router.transport.channels import Metadata
from tandem_router.transport.connection import Connection
from tandem_router.transport.failures import rpc_failure, seconds
from tandem_router.transport.statusless import on_channel

__all__ = ["Life", "limit", "serialize"]

_CONNECTING_SHARE = 0.9
"""Of the time that connecting may take: the rest is for asking who answers."""
_CLOCK_SLACK_S = 1.0
"""Beside the time that an answer takes: ages are rounded, and clocks of two machines drift and are set."""


@dataclass(frozen=True, slots=True)
class _Identity:
    """What tells one process from its successor at the same address."""

    instance: str | None
    born_s: tuple[float, float] | None
    """Earliest and latest start, on the loop's clock: the age was true at some time between question and answer."""

    def is_same(self, other: _Identity) -> bool:
        """Whether both readings are of one process; not when neither says anything: the connection was its life."""
        if self.instance != other.instance:
            return False
        if self.born_s is not None and other.born_s is not None:
            latest_begin, earliest_end = max(self.born_s[0], other.born_s[0]), min(self.born_s[1], other.born_s[1])
            return latest_begin <= earliest_end + _CLOCK_SLACK_S
        return self.instance is not None


class Life:
    """The connection of one engine client, and which process it was verified to lead to."""

    def __init__(self, connection: Connection, dialect: Dialect, metadata: Metadata, connect_timeout_s: float) -> None:
        """Args:
        connection: ready; closed by the client that owns it.
        metadata: of every call.
        connect_timeout_s: for reconnecting, whatever more a call has.
        """
        self.connection = connection
        self.dialect = dialect
        self.metadata = metadata
        self._connect_timeout_s = connect_timeout_s
        self.seen_s: float | None = None
        """Loop clock when the engine's own work was last seen: an item or a vector.

        Not a load: vLLM's front end answers for a dead engine, SGLang's servicer from snapshots of its schedulers.
        """
        self._settling = asyncio.Lock()
        self._is_settled = True
        self._identity: _Identity | None = None

    @property
    def is_open(self) -> bool:
        """Whether a request can be written now, without asking who answers."""
        return self._is_settled and self.connection.is_ready

    def seen(self) -> None:
        """The engine has just shown that it works."""
        self.seen_s = asyncio.get_running_loop().time()

    def forget(self) -> None:
        """Whoever answers next is the process that this life is of."""
        self._identity = None

    def know(self, facts: WorkerFacts, server_info: Any, asked_s: float) -> None:
        """This is the process that this life is of. asked_s: loop clock when `server_info` was asked for."""
        self._identity = self._identity_in(facts, server_info, asked_s)

    async def unary(self, rpc: Rpc, request: Message, timeout_s: float, *, reports_loss: bool = False) -> Any:
        """The answer of the process that was described; raises EngineFailure."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + timeout_s
        await self.settle(timeout_s, reports_loss=reports_loss)
        return await self._ask(rpc, request, max(0.001, deadline_s - loop.time()), self.metadata)

    async def unary_with(self, rpc: Rpc, request: Message, timeout_s: float | None, metadata: Metadata) -> Any:
        """As `unary`, with more metadata; to be called while `is_open`, or after `settle`. None sends no deadline."""
        return await self._ask(rpc, request, timeout_s, (*self.metadata, *metadata))

    async def settle(self, timeout_s: float | None, *, reports_loss: bool) -> None:
        """Return when the connection stands and leads to the process that was described.

        timeout_s: None = what connecting may take.
        reports_loss: this caller's failure reaches the control loop, so after it the new process may be served.
        """
        if self.is_open:
            return
        where = self.connection.where
        limit_s = self._connect_timeout_s if timeout_s is None else min(timeout_s, self._connect_timeout_s)
        # The connection's own timeout comes first: it knows why there is none.
        connecting_s = limit_s * _CONNECTING_SHARE
        async with limit(limit_s, f"{where}: connecting", is_connecting=True), self._settling:
            if self.is_open:
                return
            self._is_settled = False
            await self.connection.reconnect(connecting_s)
            known = self._identity
            if known is not None and not known.is_same(await self._read_identity(limit_s)):
                if reports_loss:
                    self._identity = None
                raise EngineFailure(
                    Reason.WORKER_LOST,
                    f"{where}: another process answers at this address",
                    was_sent=False,
                    connection_lost=True,
                )
            self._is_settled = True

    def failure(
        self, error: grpc.aio.AioRpcError, rpc: Rpc, timeout_s: float | None, deadline_s: float | None
    ) -> EngineFailure:
        """What grpc's error of an rpc that is not Generate means; times as `rpc_failure` takes them."""
        return rpc_failure(
            error,
            rpc=rpc.path.rpartition("/")[2],
            timeout_s=timeout_s,
            deadline_s=deadline_s,
            is_connected=self.connection.is_ready,
            where=self.connection.where,
        )

    async def _ask(self, rpc: Rpc, request: Message, timeout_s: float | None, metadata: Metadata) -> Any:
        stub: grpc.aio.UnaryUnaryMultiCallable[Message, bytes] = self.connection.channel.unary_unary(
            rpc.path, request_serializer=serialize
        )
        deadline_s = None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s
        try:
            with on_channel(self.connection):
                answer = await stub(request, timeout=timeout_s, metadata=metadata)
            return rpc.response.FromString(answer)
        except grpc.aio.AioRpcError as error:
            raise self.failure(error, rpc, timeout_s, deadline_s) from None
        except DecodeError as error:
            raise EngineFailure(
                Reason.ENGINE_PROTOCOL_ERROR, f"{self.connection.where}: {rpc.path}: {error}", code=Code.INTERNAL
            ) from None

    async def _read_identity(self, timeout_s: float) -> _Identity:
        methods, dialect = self.dialect.methods, self.dialect
        asked_s = asyncio.get_running_loop().time()
        server_info = await self._ask(methods.server_info, dialect.server_info_request(), timeout_s, self.metadata)
        return self._identity_in(dialect.facts(methods.model_info.response(), server_info), server_info, asked_s)

    def _identity_in(self, facts: WorkerFacts, server_info: Any, asked_s: float) -> _Identity:
        age_s = self.dialect.process_age_s(server_info)
        now_s = asyncio.get_running_loop().time()
        return _Identity(facts.instance, None if age_s is None else (asked_s - age_s, now_s - age_s))


def serialize(message: Message) -> bytes:
    """The bytes of a request."""
    return message.SerializeToString()


@contextlib.asynccontextmanager
async def limit(timeout_s: float, what: str, *, is_connecting: bool = False) -> AsyncIterator[None]:
    """`asyncio.timeout` whose lapse is an EngineFailure."""
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError:
        raise EngineFailure(
            Reason.WORKER_UNREACHABLE if is_connecting else Reason.ENGINE_ERROR,
            f"{what}: no answer within {seconds(timeout_s)}",
            code=Code.DEADLINE_EXCEEDED,
            was_sent=not is_connecting,
            connection_lost=is_connecting,
        ) from None

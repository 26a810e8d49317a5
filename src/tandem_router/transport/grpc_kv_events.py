"""`KvEventCall` over grpc.aio: one subscription, read at the pace of its reader."""

from __future__ import annotations

from typing import Any

import grpc.aio
from google.protobuf.message import DecodeError

from tandem_router.engines.contract import KvEventsRpc
from tandem_router.errors import Code, Reason
from tandem_router.model.failure import EngineFailure
from tandem_router.model.kv_events import KvBatch
from tandem_router.transport.failures import code_of, details_of
from tandem_router.transport.life import Life, serialize
from tandem_router.transport.statusless import STATUSLESS, on_channel, statusless_failure

__all__ = ["GrpcKvEventCall", "kv_events_refused"]

_LOST = (Code.OUT_OF_RANGE, Code.DATA_LOSS)
"""The engine no longer has what is to be resumed, or says that its publisher dropped something."""
_CANNOT = (Code.UNIMPLEMENTED, Code.FAILED_PRECONDITION)
"""FAILED_PRECONDITION: the engine was started without a publisher."""


class GrpcKvEventCall:
    """One subscription. `receive` is for one task at a time; a receive that is cancelled ends the call."""

    def __init__(self, life: Life, rpc: KvEventsRpc | None, *, resume_at: int) -> None:
        """Args:
        rpc: None = the protocol has no such rpc, which the first `receive` says.
        """
        self._life = life
        self._rpc = rpc
        self._resume_at = resume_at
        self._call: Any = None
        self._failure: EngineFailure | None = None
        self._has_ended = False

    async def receive(self) -> KvBatch | None:
        """The next batch, or None after the engine ended the stream with OK; raises EngineFailure, again when asked."""
        if self._failure is not None:
            raise self._failure
        if self._has_ended:
            return None
        where = self._life.connection.where
        try:
            if self._rpc is None:
                raise kv_events_refused(f"{where}: {self._life.dialect.runtime_type} publishes no KV events")
            if self._call is None:
                await self._open(self._rpc)
            return await self._next(self._rpc)
        except EngineFailure as failure:
            first = self._failure or failure
            self._failure = first
            self._cancel_call()
            raise first from None

    def cancel(self) -> None:
        """Reset the call; idempotent, never raises."""
        if self._failure is None and not self._has_ended:
            self._failure = EngineFailure(
                Reason.REQUEST_CANCELLED, "the subscription was cancelled by the router", code=Code.CANCELLED
            )
        self._cancel_call()

    def _cancel_call(self) -> None:
        if self._call is not None:
            self._call.cancel()

    async def _open(self, kv_events: KvEventsRpc) -> None:
        life = self._life
        await life.settle(None, reports_loss=False)
        if self._failure is not None:
            raise self._failure
        stub: grpc.aio.UnaryStreamMultiCallable[Any, bytes] = life.connection.channel.unary_stream(
            kv_events.rpc.path, request_serializer=serialize
        )
        with on_channel(life.connection):
            self._call = stub(kv_events.request(self._resume_at), metadata=life.metadata)

    async def _next(self, kv_events: KvEventsRpc) -> KvBatch | None:
        while True:
            message = await self._read(kv_events)
            if message is None:
                self._has_ended = True
                return None
            batch = kv_events.batch(message)
            if batch is not None:
                return batch

    async def _read(self, kv_events: KvEventsRpc) -> Any:
        life = self._life
        try:
            data = await self._call.read()
            return None if data is grpc.aio.EOF else kv_events.rpc.response.FromString(data)
        except grpc.aio.AioRpcError as error:
            code, where = code_of(error), life.connection.where
            if code in _LOST:
                raise EngineFailure(Reason.KV_EVENTS_LOST, f"{where}: {details_of(error)}", code=code) from None
            if code in _CANNOT:
                raise kv_events_refused(f"{where}: {code.name}: {details_of(error)}", code) from None
            raise life.failure(error, kv_events.rpc, None, None) from None
        except DecodeError as error:
            raise EngineFailure(
                Reason.ENGINE_PROTOCOL_ERROR, f"{life.connection.where}: {kv_events.rpc.path}: {error}"
            ) from None
        except STATUSLESS as error:
            # Our own failure was said by `cancel`, not by whoever awaits us.
            failure = self._failure or statusless_failure(error, life.connection)
            if failure is None:
                raise
            raise failure from None


def kv_events_refused(sentence: str, code: Code = Code.UNIMPLEMENTED) -> EngineFailure:
    """The failure of an engine that publishes none."""
    return EngineFailure(Reason.RUNTIME_CANNOT_PUBLISH_KV_EVENTS, sentence, code=code)

"""`EngineCall` over grpc.aio: pull-based, no task per token, nothing buffered beyond what grpc's window holds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import grpc.aio
from google.protobuf.message import DecodeError

from tandem_router.errors import Code, Reason
from tandem_router.model.failure import EngineFailure
from tandem_router.model.request import LegRequest
from tandem_router.model.stream import EngineItem
from tandem_router.transport.failures import code_of, connection_failure, details_of, is_late, unsent
from tandem_router.transport.life import Life
from tandem_router.transport.statusless import STATUSLESS, on_channel, statusless_failure

__all__ = ["GrpcCall"]

_TRAILER_GRACE_S = 1.0
"""After the last choice's end the status is due at once; an engine that keeps the stream open is cut off."""


class GrpcCall:
    """One Generate call. `receive` is for one task at a time; a receive that is cancelled ends the call."""

    __slots__ = (
        "_call",
        "_deadline_s",
        "_decoder",
        "_failure",
        "_has_ended",
        "_leg",
        "_life",
        "_opener",
        "_opening",
        "_parse",
        "_start",
    )

    def __init__(
        self,
        life: Life,
        leg: LegRequest,
        start: Callable[[], Any],
        opener: Callable[[], Coroutine[Any, Any, None]] | None,
        deadline_s: float | None,
    ) -> None:
        """Args:
        start: writes the request and returns the grpc call.
        opener: makes the connection ready first; None = it is ready, and the request is written now.
        deadline_s: of the call, loop clock; None = it has none.
        """
        self._life = life
        self._leg = leg
        self._decoder = life.dialect.decoder(leg)
        self._parse = life.dialect.methods.generate.response.FromString
        self._start = start
        self._opener = opener
        self._deadline_s = deadline_s
        self._opening: asyncio.Task[None] | None = None
        self._failure: EngineFailure | None = None
        self._has_ended = False
        self._call: Any = None
        if opener is None:
            try:
                self._write()
            except EngineFailure as failure:
                self._failure = failure

    async def receive(self) -> EngineItem | None:
        """The next item, or None after the last choice's end; raises EngineFailure, and again when asked again."""
        if self._failure is not None:
            raise self._failure
        if self._has_ended:
            return None
        try:
            if self._call is None:
                await self._open()
            if self._decoder.is_done:
                await self._end()
                return None
            return await self._next()
        except EngineFailure as failure:
            self._failure = failure
            self.cancel()
            raise

    def cancel(self) -> None:
        """Reset the call, or give up connecting for it; idempotent, never raises."""
        if self._failure is None and not self._has_ended:
            self._failure = EngineFailure(
                Reason.REQUEST_CANCELLED,
                "the leg was cancelled by the router",
                code=Code.CANCELLED,
                was_sent=self._call is not None,
            )
        if self._opening is not None:
            self._opening.cancel()
        if self._call is not None:
            self._call.cancel()

    async def _open(self) -> None:
        """Connect, then write the request. Failures here are proof that nothing was sent."""
        assert self._opener is not None
        self._opening = asyncio.create_task(self._opener(), name=f"open {self._leg.leg_id}")
        try:
            await self._opening
        except asyncio.CancelledError:
            if self._failure is not None:  # by `cancel`, not by whoever awaits us
                raise self._failure from None
            raise
        except EngineFailure as failure:
            raise unsent(failure) from None
        finally:
            self._opening.cancel()
            self._opening = None
        if self._failure is not None:
            raise self._failure
        self._write()

    def _write(self) -> None:
        with on_channel(self._life.connection):
            self._call = self._start()

    async def _next(self) -> EngineItem | None:
        while True:
            response = await self._read()
            if response is grpc.aio.EOF:
                self._decoder.end_of_stream()
                self._has_ended = True
                return None
            item = self._decoder.decode(response)
            if item is not None:
                self._life.seen()
                return item

    async def _end(self) -> None:
        """Drain the stream to its status, so that nothing stays open; the tokens are all here already."""
        if self._decoder.ended_early:
            self._has_ended = True
            self._call.cancel()
            return
        try:
            async with asyncio.timeout(_TRAILER_GRACE_S):
                response = await self._read()
        except (TimeoutError, EngineFailure):
            self._call.cancel()
            response = grpc.aio.EOF
        self._has_ended = True
        if response is not grpc.aio.EOF:
            self._call.cancel()
            raise EngineFailure(
                Reason.ENGINE_PROTOCOL_ERROR, "a response came after the end of every choice", code=Code.INTERNAL
            )

    async def _read(self) -> Any:
        try:
            response = await self._call.read()
            return response if response is grpc.aio.EOF else self._parse(response)
        except grpc.aio.AioRpcError as error:
            raise self._failure_of(error) from None
        except DecodeError as error:
            raise EngineFailure(
                Reason.ENGINE_PROTOCOL_ERROR,
                f"a response is not a message of the protocol: {error}",
                code=Code.INTERNAL,
            ) from None
        except STATUSLESS as error:
            # Our own failure was said by `cancel`, not by whoever awaits us.
            failure = self._failure or statusless_failure(error, self._life.connection)
            if failure is None:
                raise
            raise failure from None

    def _failure_of(self, error: grpc.aio.AioRpcError) -> EngineFailure:
        if self._failure is not None:
            return self._failure
        where = self._life.connection.where
        lost = connection_failure(error, is_connected=self._life.connection.is_ready, where=where)
        if lost is not None:
            return lost
        code = code_of(error)
        if is_late(code, self._deadline_s):
            return EngineFailure(Reason.TOTAL_TIMEOUT, f"{where}: the leg outlived its deadline", code=code)
        return self._life.dialect.status_failure(self._leg, code, details_of(error))

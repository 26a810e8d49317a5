"""The one border between our errors and gRPC's: what a handler of tandem.v1 raises becomes a status here and only here.

Malformed bytes do not reach a handler (a guarded deserializer marks them), a TandemError becomes the status of its row,
and any other exception becomes an opaque INTERNAL_ERROR whose story is in the log under the request id: grpcio would
send the exception's text to the client.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError

from tandem_router.errors import Code, Reason, TandemError
from tandem_router.ports import Ids
from tandem_router.services.gate import Gate
from tandem_router.wire.status import WireStatus, encode

__all__ = ["CallEnded", "Guard", "name_request", "unimplemented"]

LOG = logging.getLogger("tandem.services")

_PREFIX = "/tandem."
_CODES = {Code(code.value[0]): code for code in grpc.StatusCode}
_REQUEST_ID: contextvars.ContextVar[str] = contextvars.ContextVar("tandem_request_id", default="")

_REASON: contextvars.ContextVar[str | None] = contextvars.ContextVar("tandem_reason", default=None)
"""Why the running call has been refused; each call has a context of its own."""

Behaviour = Callable[[Any, grpc.aio.ServicerContext[Any, Any]], Awaitable[Any]]


CallEnded = Callable[[str, str, str | None, float], None]
"""(method "/package.Service/Rpc", status code's name, ErrorInfo.reason or None, seconds in the handler)."""


def name_request(request_id: str) -> None:
    """Say under which id errors of the running call are reported and logged."""
    _REQUEST_ID.set(request_id)


def unimplemented(rpc: str) -> TandemError:
    """The error of an rpc that the schema has and this release does not carry out."""
    return TandemError(
        Reason.FEATURE_NOT_IMPLEMENTED, f"{rpc} is not carried out by this release.", metadata={"rpc": rpc}
    )


@dataclass(frozen=True, slots=True)
class _Malformed:
    """Stands for a request whose bytes could not be read."""

    size_bytes: int

    def error(self, method: str) -> TandemError:
        """What its sender is told."""
        return TandemError(Reason.MALFORMED_MESSAGE, f"The {self.size_bytes} bytes are not a request of {method}.")


async def _readable(requests: AsyncIterable[Any], method: str) -> AsyncIterator[Any]:
    """The messages of a client's stream; raises MALFORMED_MESSAGE at the first that could not be read."""
    async for request in requests:
        if isinstance(request, _Malformed):
            raise request.error(method)
        yield request


class Guard(grpc.aio.ServerInterceptor):
    """Wraps every handler of our own services; those of others (health, reflection, channelz) pass unchanged."""

    def __init__(self, ids: Ids, gate: Gate | None = None, ended: CallEnded | None = None) -> None:
        """Args:
        gate: which calls may go in; None lets all in.
        ended: told of every call that has its status; must return at once and not raise.
        """
        self._ids = ids
        self._ended = ended
        self._gate = gate or Gate()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The handler with its deserializer and behaviour guarded."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith(_PREFIX):
            return handler
        make, behaviour = _parts(handler)
        guarded_behaviour = self._guarded(behaviour, method)
        if self._ended is not None:
            guarded_behaviour = _timed(guarded_behaviour, method, self._ended)
        rewrapped: grpc.RpcMethodHandler[Any, Any] = make(
            guarded_behaviour,
            request_deserializer=_tolerant(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )
        return rewrapped

    def _guarded(self, behaviour: Behaviour, method: str) -> Behaviour:
        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            try:
                if isinstance(request, _Malformed):
                    raise request.error(method)
                if isinstance(request, AsyncIterable):
                    request = _readable(request, method)
                with self._gate.inside(method):
                    return await behaviour(request, context)
            except TandemError as error:
                refusal, request_id = error, self._request_id()
            except (grpc.aio.AbortError, asyncio.CancelledError):
                raise
            except Exception:
                request_id = self._request_id()
                LOG.exception("%s failed, request %s", method, request_id)
                sentence = f"A fault of the router; the log has request {request_id}."
                refusal = TandemError(Reason.INTERNAL_ERROR, sentence)
            _REASON.set(refusal.reason.value)
            # grpcio 1.85 keeps an abort's exception in a cycle with its call until the garbage collector comes. It must
            # not lead to the request: a few refused prompts of megabytes would be as good as a leak.
            del request
            return await _abort(context, encode(_without_traces(refusal), request_id=request_id))

        return call

    def _request_id(self) -> str:
        return _REQUEST_ID.get() or self._ids.uuid()


def _timed(behaviour: Behaviour, method: str, ended: CallEnded) -> Behaviour:
    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        code: str | None = None
        running = behaviour(request, context)
        del request  # see _guarded: this frame, too, outlives an aborted call
        try:
            return await running
        except asyncio.CancelledError:
            code = "CANCELLED"
            raise
        finally:
            ended(method, code or _code(context), _REASON.get(), loop.time() - began_s)

    return call


def _code(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """The status that the call has; grpc.aio has 0 for a call that was not aborted."""
    stated: Any = context.code()
    return Code(stated.value[0] if isinstance(stated, grpc.StatusCode) else int(stated or 0)).name


def _without_traces(error: TandemError) -> TandemError:
    """The error without the frames that it came through, and their locals."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


async def _abort(context: grpc.aio.ServicerContext[Any, Any], status: WireStatus) -> NoReturn:
    # The stub wants pairs of one type; grpcio takes text and "-bin" bytes mixed.
    trailers: Any = status.trailers
    await context.abort(_CODES[status.code], status.message, trailing_metadata=trailers)
    raise AssertionError("abort always raises")


def _tolerant(read: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    if read is None:
        return None

    def deserialize(data: bytes) -> Any:
        try:
            return read(data)
        except (DecodeError, UnicodeDecodeError):
            return _Malformed(len(data))

    return deserialize


def _parts(handler: grpc.RpcMethodHandler[Any, Any]) -> tuple[Callable[..., Any], Behaviour]:
    """The constructor of this handler's kind, and what it runs."""
    any_handler: Any = handler
    if handler.request_streaming:
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler, any_handler.stream_stream
        return grpc.stream_unary_rpc_method_handler, any_handler.stream_unary
    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler, any_handler.unary_stream
    return grpc.unary_unary_rpc_method_handler, any_handler.unary_unary

"""The door of a scripted engine: every call is written down here, and the rpc-wide faults of the script act here."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import grpc
import grpc.aio

from tandem_router.testing.grpc_engines.answering import Context
from tandem_router.testing.grpc_engines.recorded import Seen
from tandem_router.testing.grpc_engines.script import GrpcScript

__all__ = ["Gate"]


class Gate(grpc.aio.ServerInterceptor):
    """Stands before every method of the engine's own service."""

    def __init__(self, service: str, script: Callable[[], GrpcScript]) -> None:
        self._service = service
        self._script = script
        self.seen: list[Seen] = []

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any) -> Any:
        """The method's own body behind the gate; other services as they are."""
        service, _, rpc = handler_call_details.method[1:].rpartition("/")
        body = await continuation(handler_call_details)
        if body is None or service != self._service:
            return body
        if body.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(
                self._unary(rpc, body.unary_unary), body.request_deserializer, body.response_serializer
            )
        return grpc.unary_stream_rpc_method_handler(
            self._stream(rpc, body.unary_stream), body.request_deserializer, body.response_serializer
        )

    def _unary(self, rpc: str, body: Any) -> Any:
        async def answer(request: Any, context: Context) -> Any:
            seen = self._write_down(rpc, request, context)
            with _cancel_noted(seen):
                await self._enter(seen, context, is_served=inspect.iscoroutinefunction(body))
                return await body(request, context)

        return answer

    def _stream(self, rpc: str, body: Any) -> Any:
        async def answer(request: Any, context: Context) -> AsyncIterator[Any]:
            seen = self._write_down(rpc, request, context)
            with _cancel_noted(seen):
                await self._enter(seen, context, is_served=inspect.isasyncgenfunction(body))
                # Closed here and now: a generator left to the collector would keep its request running.
                async with contextlib.aclosing(body(request, context)) as responses:
                    async for response in responses:
                        yield response

        return answer

    def _write_down(self, rpc: str, request: Any, context: Context) -> Seen:
        loop = asyncio.get_running_loop()
        metadata = {key: str(value) for key, value in context.invocation_metadata() or ()}
        seen = Seen(rpc, request, metadata, context.time_remaining(), loop.time())
        self.seen.append(seen)

        def ended(done: Any) -> None:
            seen.ended_s = loop.time()

        context.add_done_callback(ended)  # type: ignore[arg-type]  # the stub has another idea of it
        return seen

    async def _enter(self, seen: Seen, context: Context, *, is_served: bool) -> None:
        script, metadata = self._script(), seen.metadata
        if script.api_key and metadata.get("authorization") != f"Bearer {script.api_key}":
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "wrong or missing API key")
        if not is_served or seen.rpc in script.unimplemented:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not implemented!")
        if seen.rpc in script.hangs:
            await asyncio.Event().wait()


@contextlib.contextmanager
def _cancel_noted(seen: Seen) -> Iterator[None]:
    try:
        yield
    except (asyncio.CancelledError, GeneratorExit):
        seen.was_cancelled = True
        raise

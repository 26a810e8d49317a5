"""The client's end of a Generate call over grpcio.

Bounds: one message of ours plus grpcio's own write buffer (64 KiB) and the client's flow-control window per stream;
`chunk` waits when these are full, and a write that waits longer than the slow-client limit ends the call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc

from tandem.v1 import generate_pb2, generate_result_pb2
from tandem_router.errors import Reason, TandemError
from tandem_router.model.failure import Failure
from tandem_router.model.stream import Finished, OutputChunk, QueueStatus
from tandem_router.services.headers import Headers
from tandem_router.wire.queue import queue_pb
from tandem_router.wire.result import chunk_pb, finished_pb
from tandem_router.wire.status import REQUEST_ID_KEY

__all__ = ["GrpcTokenSink", "ServerContext"]

ServerContext = grpc.aio.ServicerContext[generate_pb2.GenerateRequest, generate_result_pb2.GenerateResponse]


class GrpcTokenSink:
    """Writes to one call's stream; headers go out with the first token, so a retry policy stays valid until then."""

    def __init__(self, context: ServerContext, request_id: str, requested_model: str) -> None:
        self._context = context
        self._request_id = request_id
        self._requested_model = requested_model
        self._headers = Headers(context, ((REQUEST_ID_KEY, request_id),))
        self._is_first = True
        self._text_offsets: dict[int, int] = {}
        self._waiting_since_s: float | None = None
        self._watch: asyncio.TimerHandle | None = None

    async def queued(self, status: QueueStatus) -> None:
        """Write where the request stands; raises REQUEST_CANCELLED when the client is gone."""
        await self._write(queue_pb(status, self._request_id if self._is_first else ""))

    async def chunk(self, chunk: OutputChunk) -> None:
        """Write new output; raises REQUEST_CANCELLED when the client is gone."""
        text_offset = 0
        if chunk.text:
            text_offset = self._text_offsets.get(chunk.choice, 0) + len(chunk.text.encode())
            self._text_offsets[chunk.choice] = text_offset
        elif self._text_offsets:
            text_offset = self._text_offsets.get(chunk.choice, 0)
        if self._is_first:
            await self._write(chunk_pb(chunk, text_offset, self._request_id))
        else:
            await self._write(chunk_pb(chunk, text_offset, ""))

    async def finish(self, finished: Finished) -> None:
        """Write the last message; raises REQUEST_CANCELLED when the client is gone."""
        message = finished_pb(finished, request_id=self._request_id, requested_model=self._requested_model)
        request_id = self._request_id if self._is_first else ""
        await self._write(generate_result_pb2.GenerateResponse(finished=message, request_id=request_id))

    def watch(self, limit_s: float, end: Callable[[Failure], None]) -> None:
        """Call `end` once a write has waited for `limit_s`, noticed within another half of it. One timer per call."""
        loop = asyncio.get_running_loop()
        since_s = self._waiting_since_s
        if since_s is not None and loop.time() - since_s >= limit_s:
            self._watch = None
            end(Failure(Reason.SLOW_CLIENT, f"The client has read nothing for {limit_s:g} s."))
            return
        self._watch = loop.call_later(limit_s / 2, self.watch, limit_s, end)

    async def close(self) -> None:
        """Stop watching, and wait until the call may be ended; idempotent."""
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        await self._headers.settled()

    async def _write(self, message: generate_result_pb2.GenerateResponse) -> None:
        self._waiting_since_s = asyncio.get_running_loop().time()
        try:
            if self._is_first:
                self._is_first = False
                await self._headers.sent()
            await self._context.write(message)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            # grpcio raises private types when the peer is gone (ExecuteBatchError, UsageError, ...).
            raise TandemError(Reason.REQUEST_CANCELLED, "The client's stream has ended.") from error
        finally:
            self._waiting_since_s = None

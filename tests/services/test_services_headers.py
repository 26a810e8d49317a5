"""A writer that is cancelled in the middle of its first message takes no status from the client: over real gRPC."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import grpc
import pytest

from tandem.v1 import generate_result_pb2
from tandem_router.model.stream import OutputChunk
from tandem_router.services.sink import GrpcTokenSink


@pytest.mark.parametrize("steps", range(6))
async def test_a_generate_call_that_ends_while_its_first_token_is_written_has_its_status(steps: int) -> None:
    async def generate(_: bytes, context: Any) -> None:
        sink = GrpcTokenSink(context, "r", "m")
        writing = asyncio.ensure_future(sink.chunk(OutputChunk(0, 1, (7,))))
        for _ in range(steps):
            await asyncio.sleep(0)
        writing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await writing
        await sink.close()
        await context.abort(grpc.StatusCode.UNAVAILABLE, "ended")

    handler = grpc.unary_stream_rpc_method_handler(
        generate, response_serializer=generate_result_pb2.GenerateResponse.SerializeToString
    )
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", {"Generate": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel, asyncio.timeout(10):
            assert await channel.unary_stream("/test/Generate")(b"").code() is grpc.StatusCode.UNAVAILABLE
    finally:
        await server.stop(None)

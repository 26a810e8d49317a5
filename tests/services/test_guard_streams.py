"""The guard before handlers that read a stream of the client's: its messages are as untrusted as single ones."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.services.fakes import FakeIds

from tandem.v1 import session_pb2
from tandem_router.errors import Reason
from tandem_router.services.guard import Guard
from tandem_router.wire.status import decode

METHOD = "/tandem.v1.RouterService/GenerateSession"
GOOD = session_pb2.GenerateSessionRequest(abort=session_pb2.SessionAbort(tag=7)).SerializeToString()


class Tags(grpc.GenericRpcHandler):
    """Answers every command with its tag."""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        async def answer(requests: Any, context: Any) -> None:
            async for request in requests:
                await context.write(bytes([request.abort.tag]))

        return grpc.stream_stream_rpc_method_handler(answer, session_pb2.GenerateSessionRequest.FromString, None)


@pytest.fixture
async def channel(tmp_path: Path) -> AsyncIterator[grpc.aio.Channel]:
    server = grpc.aio.server(interceptors=[Guard(FakeIds())])
    server.add_generic_rpc_handlers((Tags(),))
    server.add_insecure_port(f"unix:{tmp_path}/guarded")
    await server.start()
    async with grpc.aio.insecure_channel(f"unix:{tmp_path}/guarded") as channel:
        yield channel
    await server.stop(None)


async def test_messages_of_a_stream_pass_the_guard(channel: grpc.aio.Channel) -> None:
    call: Any = channel.stream_stream(METHOD)(iter([GOOD, GOOD]))
    assert [answer async for answer in call] == [b"\7", b"\7"]


async def test_malformed_message_in_a_stream_ends_it_with_its_reason(channel: grpc.aio.Channel) -> None:
    call: Any = channel.stream_stream(METHOD)(iter([GOOD, b"\xff"]))
    first = await call.read()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    error = decode([(key, value) for key, value in caught.value.trailing_metadata() or ()])
    assert (first, caught.value.code(), error and error.reason) == (
        b"\7", grpc.StatusCode.INVALID_ARGUMENT, Reason.MALFORMED_MESSAGE,
    )  # fmt: skip

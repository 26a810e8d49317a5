"""A channel that is closed under a call, or before it: grpc.aio raises no status then, and nothing of it gets out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import pytest
from scripted_server import ScriptedServer
from toy_dialect import ToyDialect

from tandem_router.errors import Reason
from tandem_router.model.embedding import EmbedLeg
from tandem_router.model.failure import EngineFailure
from tandem_router.model.operations import FlushCache
from tandem_router.model.pairing import HandshakeKind, LegRole
from tandem_router.model.request import LegRequest, Sampling
from tandem_router.model.spec import ChannelOptions
from tandem_router.transport.channels import open_channel
from tandem_router.transport.connection import Connection
from tandem_router.transport.detection import detect
from tandem_router.transport.grpc_engine import GrpcEngine
from tandem_router.transport.statusless import on_channel

TIMEOUT_S = 5.0
LEG = LegRequest("leg-1", HandshakeKind.AGGREGATE, LegRole.DECODE, (5, 6, 7), Sampling())

Use = Callable[[GrpcEngine], Awaitable[object]]


async def detected(client: GrpcEngine) -> object:
    return await detect(client.connection, [ToyDialect()], (), TIMEOUT_S, lambda asked: None)


USES: dict[str, Use] = {
    "probe": lambda client: client.probe(timeout_s=TIMEOUT_S),
    "describe": lambda client: client.describe(timeout_s=TIMEOUT_S),
    "abort": lambda client: client.abort("leg-1", timeout_s=TIMEOUT_S),
    "loads": lambda client: client.loads(timeout_s=TIMEOUT_S),
    "tokenizer": lambda client: client.fetch_tokenizer(timeout_s=TIMEOUT_S),
    "embed": lambda client: client.embed(EmbedLeg("leg-e", (5, 6)), timeout_s=TIMEOUT_S),
    "operate": lambda client: client.operate(FlushCache(), timeout_s=TIMEOUT_S),
    "kv_events": lambda client: client.kv_events(resume_at=0).receive(),
    "generate": lambda client: client.generate(LEG, timeout_s=None).receive(),
    "detect": detected,
}


@pytest.fixture
async def asked() -> asyncio.Event:
    """Set when the mute worker has been asked something."""
    return asyncio.Event()


@pytest.fixture
async def mute(worker: ScriptedServer, asked: asyncio.Event) -> AsyncIterator[GrpcEngine]:
    """A client whose worker answers nothing from now on."""
    connection = Connection(open_channel(worker.url, ChannelOptions()), worker.url)
    client = GrpcEngine(connection, ToyDialect(), None, connect_timeout_s=None)
    await client.describe(timeout_s=TIMEOUT_S)

    async def silent(request: Any, context: Any) -> Any:
        asked.set()
        await asyncio.Event().wait()

    async def mute_stream(request: Any, context: Any) -> AsyncIterator[Any]:
        asked.set()
        await asyncio.Event().wait()
        yield b""

    streams = {"GetTokenizer", "SubscribeKvEvents", "Generate"}
    unary = {"HealthCheck", "GetModelInfo", "GetServerInfo", "Abort", "GetLoads", "Embed", "FlushCache"}
    worker.more = dict.fromkeys(unary, silent) | dict.fromkeys(streams, mute_stream)
    yield client
    await client.close()


@pytest.mark.parametrize("use", USES)
async def test_call_whose_channel_is_closed_meanwhile_fails_as_lost(
    mute: GrpcEngine, asked: asyncio.Event, use: str
) -> None:
    asking = asyncio.ensure_future(USES[use](mute))
    async with asyncio.timeout(TIMEOUT_S):
        await asked.wait()
    await mute.connection.channel.close()
    async with asyncio.timeout(TIMEOUT_S):
        [found] = await asyncio.gather(asking, return_exceptions=True)
    assert isinstance(found, EngineFailure)
    assert (found.reason, found.connection_lost) == (Reason.WORKER_LOST, True)


@pytest.mark.parametrize("use", USES)
async def test_call_on_a_closed_channel_proves_that_nothing_was_sent(mute: GrpcEngine, use: str) -> None:
    await mute.connection.channel.close()
    with pytest.raises(EngineFailure) as caught:
        await USES[use](mute)
    found = caught.value
    assert (found.reason, found.was_sent, found.connection_lost) == (Reason.WORKER_UNREACHABLE, False, True)


@pytest.mark.parametrize("use", USES)
async def test_cancelled_task_stays_cancelled_although_the_channel_closes_too(
    mute: GrpcEngine, asked: asyncio.Event, use: str
) -> None:
    asking = asyncio.ensure_future(USES[use](mute))
    async with asyncio.timeout(TIMEOUT_S):
        await asked.wait()
    asking.cancel()
    await mute.connection.channel.close()
    with pytest.raises(asyncio.CancelledError):
        await asking


async def test_connecting_is_given_up_when_the_channel_is_closed(unreachable: Connection) -> None:
    connecting = asyncio.create_task(unreachable.connect(TIMEOUT_S, attempts=1000))
    await asyncio.sleep(0)
    await unreachable.close()
    with pytest.raises(EngineFailure) as caught:
        await connecting
    assert (caught.value.was_sent, caught.value.connection_lost) == (False, True)


@pytest.fixture
async def unreachable() -> AsyncIterator[Connection]:
    """Something takes the connection, and never says that it speaks HTTP/2."""
    writers: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: writers.append(writer), "127.0.0.1", 0)
    url = f"grpc://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield Connection(open_channel(url, ChannelOptions()), url)
    server.close()
    for writer in writers:
        writer.close()


@pytest.mark.parametrize("use", ["probe", "generate", "kv_events", "detect"])
async def test_what_grpc_will_not_write_is_a_fault_of_ours(worker: ScriptedServer, use: str) -> None:
    connection = Connection(open_channel(worker.url, ChannelOptions()), worker.url)
    client = GrpcEngine(connection, ToyDialect(), None, connect_timeout_s=None)
    await connection.connect(TIMEOUT_S)
    bad = client._life.metadata = (("x-bad", "a\nb"),)
    asking = detect(connection, [ToyDialect()], bad, TIMEOUT_S, lambda asked: None) if use == "detect" else None
    with pytest.raises(EngineFailure) as caught:
        await (asking or USES[use](client))
    await client.close()
    assert not caught.value.connection_lost
    assert "a\nb" not in caught.value.sentence


@pytest.mark.parametrize("error", [grpc.aio.InternalError, grpc.aio.UsageError, asyncio.InvalidStateError])
def test_other_errors_of_the_library_do_not_get_out(error: type[Exception]) -> None:
    class Open:
        where, is_closed = "grpc://w:1", False

    with pytest.raises(EngineFailure) as caught, on_channel(Open()):  # type: ignore[arg-type]
        raise error("x")
    assert (caught.value.reason, caught.value.connection_lost) == (Reason.INTERNAL_ERROR, False)

"""Connecting: refused, silent, wrong protocol, detection order, credentials, and knocking at bootstrap ports."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
from scripted_server import ScriptedServer

from tandem_router.errors import Reason, TandemError
from tandem_router.model.failure import EngineFailure
from tandem_router.model.request import LegRequest
from tandem_router.model.spec import ChannelOptions, RuntimeType, WorkerSpec
from tandem_router.model.worker import Credentials
from tandem_router.transport.channels import channel_options, parse_address
from tandem_router.transport.dialer import GrpcDialer

TIMEOUT_S = 5.0


@pytest.fixture
async def silent_port() -> AsyncIterator[int]:
    """A port that accepts and says nothing."""

    writers: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: writers.append(writer), "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    for writer in writers:
        writer.close()
        await writer.wait_closed()


@pytest.fixture
def closed_port() -> int:
    """A port that refuses: bound, never listening, so nobody else gets it either."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def dial_failure(spec: WorkerSpec, timeout_s: float = TIMEOUT_S) -> EngineFailure:
    with pytest.raises(EngineFailure) as caught:
        await GrpcDialer().dial(spec, None, timeout_s=timeout_s)
    return caught.value


async def test_refused_connection_is_unreachable(closed_port: int) -> None:
    found = await dial_failure(WorkerSpec(f"grpc://127.0.0.1:{closed_port}"))
    assert (found.reason, found.was_sent) == (Reason.WORKER_UNREACHABLE, False)


async def test_refused_connection_is_told_long_before_the_timeout(closed_port: int) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        await dial_failure(WorkerSpec(f"grpc://127.0.0.1:{closed_port}"), timeout_s=60)


async def test_port_that_says_nothing_is_unreachable(silent_port: int) -> None:
    found = await dial_failure(WorkerSpec(f"grpc://127.0.0.1:{silent_port}"), timeout_s=0.2)
    assert found.reason is Reason.WORKER_UNREACHABLE


@pytest.mark.parametrize(
    ("service", "expected"),
    [
        ("sglang.grpc.scheduler.SglangScheduler", RuntimeType.SGLANG),
        ("vllm.grpc.engine.VllmEngine", RuntimeType.VLLM),
    ],
)
async def test_protocol_is_detected(service: str, expected: RuntimeType) -> None:
    worker = ScriptedServer(service)
    await worker.start()
    client = await GrpcDialer().dial(WorkerSpec(worker.url), None, timeout_s=TIMEOUT_S)
    detected = client.dialect.runtime_type
    await client.close()
    await worker.stop()
    assert detected is expected


async def test_unknown_protocol_is_not_detected() -> None:
    worker = ScriptedServer("some.other.Service")
    await worker.start()
    found = await dial_failure(WorkerSpec(worker.url))
    await worker.stop()
    assert found.reason is Reason.RUNTIME_NOT_DETECTED


async def test_stated_protocol_is_checked(worker: ScriptedServer) -> None:
    found = await dial_failure(WorkerSpec(worker.url, runtime_type=RuntimeType.VLLM))
    assert found.reason is Reason.RUNTIME_NOT_DETECTED


async def test_unspoken_protocol_is_refused_without_dialling() -> None:
    found = await dial_failure(WorkerSpec("grpc://127.0.0.1:1", runtime_type=RuntimeType.MLX))
    assert found.reason is Reason.RUNTIME_NOT_DETECTED


async def test_api_key_travels_as_bearer_token(worker: ScriptedServer, leg: LegRequest) -> None:
    client = await GrpcDialer().dial(WorkerSpec(worker.url), Credentials("k"), timeout_s=TIMEOUT_S)
    call = client.generate(leg, timeout_s=TIMEOUT_S)
    while await call.receive() is not None:
        pass
    await client.close()
    assert worker.metadata[0]["authorization"] == "Bearer k"


async def test_open_bootstrap_port_is_reached(silent_port: int) -> None:
    await GrpcDialer().probe_bootstrap("127.0.0.1", silent_port, timeout_s=TIMEOUT_S)


async def test_closed_bootstrap_port_is_unreachable(closed_port: int) -> None:
    with pytest.raises(EngineFailure) as caught:
        await GrpcDialer().probe_bootstrap("127.0.0.1", closed_port, timeout_s=TIMEOUT_S)
    assert caught.value.reason is Reason.WORKER_UNREACHABLE


@pytest.mark.parametrize(
    ("url", "target"),
    [("grpc://h:1", "h:1"), ("grpcs://h:1", "h:1"), ("grpc://[::1]:50051", "[::1]:50051")],
)
def test_trap_3_address_of_a_url(url: str, target: str) -> None:
    assert parse_address(url).target == target


@pytest.mark.parametrize("url", ["http://h:1", "grpc://h", "grpc://:1", "grpc://h:99999", "h:1"])
def test_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(TandemError) as caught:
        parse_address(url)
    assert caught.value.reason is Reason.INVALID_WORKER_URL


def test_keepalive_stays_above_a_python_servers_minimum() -> None:
    assert dict(channel_options(ChannelOptions()))["grpc.keepalive_time_ms"] >= 300_000


def test_grpc_never_retries_by_itself() -> None:
    assert dict(channel_options(ChannelOptions()))["grpc.enable_retries"] == 0


def test_stated_channel_options_win() -> None:
    options = dict(channel_options(ChannelOptions(keepalive_time_s=30.0, max_message_bytes=1024)))
    assert (options["grpc.keepalive_time_ms"], options["grpc.max_receive_message_length"]) == (30_000, 1024)

"""Connecting: refused, silent, wrong protocol, detection order, credentials, and knocking at bootstrap ports."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from scripted_server import ScriptedServer, tokenizer_chunks, until_lost
from smg_grpc_proto.generated import sglang_scheduler_pb2 as sglang

from tandem_router.engines.registry import PROBE_ORDER, dialect_of
from tandem_router.errors import Reason, TandemError
from tandem_router.model.detection import Asked
from tandem_router.model.failure import EngineFailure
from tandem_router.model.request import LegRequest
from tandem_router.model.spec import ChannelOptions, RuntimeType, WorkerSpec
from tandem_router.model.worker import Credentials
from tandem_router.transport.channels import channel_options, parse_address
from tandem_router.transport.dialer import GrpcDialer
from tandem_router.transport.failures import seconds

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


async def test_timeout_before_the_last_try_tells_why_the_first_had_failed(closed_port: int) -> None:
    found = await dial_failure(WorkerSpec(f"grpc://127.0.0.1:{closed_port}"), timeout_s=0.2)
    assert found.reason is Reason.WORKER_UNREACHABLE
    assert "Connection refused" in found.sentence
    assert found.sentence.endswith("; no connection within 0.2 s")


async def test_broken_connection_whose_port_refuses_by_now_says_so(worker: ScriptedServer) -> None:
    client = await GrpcDialer().dial(WorkerSpec(worker.url), None, timeout_s=TIMEOUT_S)
    await client.describe(timeout_s=TIMEOUT_S)
    await worker.stop()
    await until_lost(client.connection)
    for _ in range(2):  # the second finds grpc in the pause between two tries of its own
        with pytest.raises(EngineFailure) as caught:
            await client.probe(timeout_s=0.2)
        assert caught.value.reason is Reason.WORKER_UNREACHABLE
        assert "Connection refused" in caught.value.sentence
    await client.close()


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
    unspoken = next(kind for kind in RuntimeType if dialect_of(kind) is None)
    found = await dial_failure(WorkerSpec("grpc://127.0.0.1:1", runtime_type=unspoken))
    assert found.reason is Reason.RUNTIME_NOT_DETECTED


async def test_api_key_travels_as_bearer_token_of_every_rpc(worker: ScriptedServer, leg: LegRequest) -> None:
    worker.tokenizer, worker.loads = tokenizer_chunks(b"zip"), sglang.GetLoadsResponse()
    client = await GrpcDialer().dial(WorkerSpec(worker.url), Credentials("k"), timeout_s=TIMEOUT_S)
    await client.describe(timeout_s=TIMEOUT_S)
    await client.probe(timeout_s=TIMEOUT_S)
    await client.loads(timeout_s=TIMEOUT_S)
    await client.fetch_tokenizer(timeout_s=TIMEOUT_S)
    call = client.generate(leg, timeout_s=TIMEOUT_S)
    while await call.receive() is not None:
        pass
    await client.abort("leg-1", timeout_s=TIMEOUT_S)
    await client.close()
    asked = {method for method, _ in worker.calls}
    assert asked >= {"GetServerInfo", "GetModelInfo", "HealthCheck", "GetLoads", "GetTokenizer", "Generate", "Abort"}
    assert {metadata.get("authorization") for _, metadata in worker.calls} == {"Bearer k"}


async def test_worker_without_credentials_gets_no_authorization(worker: ScriptedServer) -> None:
    client = await GrpcDialer().dial(WorkerSpec(worker.url), None, timeout_s=TIMEOUT_S)
    await client.close()
    assert ["authorization" in metadata for _, metadata in worker.calls] == [False]


async def trace_of(worker: ScriptedServer, runtime_type: RuntimeType | None = None) -> list[Asked]:
    trace: list[Asked] = []
    spec = WorkerSpec(worker.url, runtime_type=runtime_type)
    with contextlib.suppress(EngineFailure):
        client = await GrpcDialer().dial(spec, None, timeout_s=0.5, on_asked=trace.append)
        await client.close()
    return trace


async def test_every_question_of_a_detection_is_told_in_its_order() -> None:
    worker = ScriptedServer(PROBE_ORDER[1].service)
    await worker.start()
    trace = await trace_of(worker)
    await worker.stop()
    expected = [(PROBE_ORDER[0].runtime_type, "UNIMPLEMENTED"), (PROBE_ORDER[1].runtime_type, "OK")]
    assert [(asked.runtime_type, asked.answer) for asked in trace] == expected
    assert all(asked.took_s >= 0 for asked in trace)


async def test_detection_that_finds_nothing_tells_all_that_it_asked() -> None:
    worker = ScriptedServer("some.other.Service")
    await worker.start()
    trace = await trace_of(worker)
    await worker.stop()
    assert [asked.runtime_type for asked in trace] == [dialect.runtime_type for dialect in PROBE_ORDER]
    assert {asked.answer for asked in trace} == {"UNIMPLEMENTED"}


async def test_stated_protocol_is_the_only_question(worker: ScriptedServer) -> None:
    trace = await trace_of(worker, RuntimeType.SGLANG)
    assert [(asked.runtime_type, asked.answer) for asked in trace] == [(RuntimeType.SGLANG, "OK")]


async def test_question_without_an_answer_is_told_too(worker: ScriptedServer) -> None:
    async def silent(request: Any, context: Any) -> Any:
        await asyncio.get_running_loop().create_future()

    worker.server_info = silent
    [asked] = await trace_of(worker, RuntimeType.SGLANG)
    assert asked.answer == "DEADLINE_EXCEEDED"


async def test_worker_that_connects_and_never_answers_is_unreachable(worker: ScriptedServer) -> None:
    async def silent(request: Any, context: Any) -> Any:
        await asyncio.get_running_loop().create_future()

    worker.server_info = silent
    found = await dial_failure(WorkerSpec(worker.url, runtime_type=RuntimeType.SGLANG), timeout_s=0.3)
    assert (found.reason, found.connection_lost) == (Reason.WORKER_UNREACHABLE, False)


async def test_worker_that_wants_other_credentials_is_not_asked_on(worker: ScriptedServer) -> None:
    async def denied(request: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "bad key")

    worker.server_info = denied
    found = await dial_failure(WorkerSpec(worker.url))
    assert (found.reason, len(worker.calls)) == (Reason.WORKER_REFUSED, 1)


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


@pytest.mark.parametrize(
    ("duration_s", "told"), [(0.1234567, "0.123 s"), (5.0, "5 s"), (99.94, "99.9 s"), (1800.25, "1800 s")]
)
def test_durations_are_told_without_an_end_of_digits(duration_s: float, told: str) -> None:
    assert seconds(duration_s) == told

"""Embed, operations and KV events: carried where the dialect has the rpc, refused by the right reason where not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf import wrappers_pb2 as wrap
from scripted_server import ScriptedServer, until_lost
from smg_grpc_proto.generated import common_pb2
from toy_dialect import BareDialect, ToyDialect

from tandem_router.errors import Code, Reason
from tandem_router.model.adapters import LoadedAdapter
from tandem_router.model.embedding import EmbedLeg
from tandem_router.model.failure import EngineFailure
from tandem_router.model.kv_events import KvBatch
from tandem_router.model.operations import (
    CANNOT,
    FlushCache,
    ListAdapters,
    LoadAdapter,
    Operated,
    Operation,
    StartProfile,
    StopProfile,
    UnloadAdapter,
)
from tandem_router.model.spec import ChannelOptions
from tandem_router.model.worker import Credentials
from tandem_router.ports import KvEventCall
from tandem_router.transport.channels import open_channel
from tandem_router.transport.connection import Connection
from tandem_router.transport.grpc_engine import GrpcEngine

TIMEOUT_S = 5.0
LEG = EmbedLeg("leg-e", (5, 6), traceparent="00-trace", metadata=(("x-request-id", "r-1"),))
ALL: tuple[Operation, ...] = (
    FlushCache(),
    StartProfile(),
    StopProfile(),
    LoadAdapter("a", "p"),
    UnloadAdapter("a"),
    ListAdapters(),
)


def client_of(worker: ScriptedServer, dialect: ToyDialect) -> GrpcEngine:
    connection = Connection(open_channel(worker.url, ChannelOptions()), worker.url)
    return GrpcEngine(connection, dialect, Credentials("k"), connect_timeout_s=None)


@pytest.fixture
async def toy(worker: ScriptedServer) -> AsyncIterator[GrpcEngine]:
    client = client_of(worker, ToyDialect())
    await client.describe(timeout_s=TIMEOUT_S)
    worker.calls.clear()
    yield client
    await client.close()


@pytest.fixture
async def bare(worker: ScriptedServer) -> AsyncIterator[GrpcEngine]:
    client = client_of(worker, BareDialect())
    yield client
    await client.close()


def says(text: str) -> Any:
    async def answer(request: bytes, context: Any) -> Any:
        return wrap.StringValue(value=text)

    return answer


def fails(code: grpc.StatusCode, details: str = "no") -> Any:
    async def answer(request: bytes, context: Any) -> Any:
        await context.abort(code, details)

    return answer


async def test_vector_comes_back(worker: ScriptedServer, toy: GrpcEngine) -> None:
    worker.more["Embed"] = says("0.5")
    assert (await toy.embed(LEG, timeout_s=TIMEOUT_S)).values == (0.5,)


async def test_embed_call_carries_key_trace_request_id_and_deadline(worker: ScriptedServer, toy: GrpcEngine) -> None:
    left: list[float | None] = []

    async def answer(request: bytes, context: Any) -> Any:
        left.append(context.time_remaining())
        return wrap.StringValue(value="1")

    worker.more["Embed"] = answer
    await toy.embed(LEG, timeout_s=TIMEOUT_S)
    [(_, metadata)] = worker.calls
    sent = {key: metadata.get(key) for key in ("authorization", "traceparent", "x-request-id")}
    assert sent == {"authorization": "Bearer k", "traceparent": "00-trace", "x-request-id": "r-1"}
    assert left[0] is not None
    assert 0 < left[0] < TIMEOUT_S + 1  # grpc rounds up


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (grpc.StatusCode.UNIMPLEMENTED, Reason.RUNTIME_CANNOT_EMBED),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.WORKER_REFUSED),
        (grpc.StatusCode.INTERNAL, Reason.ENGINE_ERROR),
        (grpc.StatusCode.DEADLINE_EXCEEDED, Reason.ENGINE_ERROR),
    ],
)
async def test_status_of_embed_is_the_engines_refusal(
    worker: ScriptedServer, toy: GrpcEngine, status: grpc.StatusCode, reason: Reason
) -> None:
    worker.more["Embed"] = fails(status)
    with pytest.raises(EngineFailure) as caught:
        await toy.embed(LEG, timeout_s=TIMEOUT_S)
    assert (caught.value.reason, caught.value.code, caught.value.connection_lost) == (
        reason,
        Code(status.value[0]),
        False,
    )


async def test_embed_past_its_deadline_is_the_legs_own_end(worker: ScriptedServer, toy: GrpcEngine) -> None:
    async def late(request: bytes, context: Any) -> Any:
        await asyncio.get_running_loop().create_future()

    worker.more["Embed"] = late
    with pytest.raises(EngineFailure) as caught:
        await toy.embed(LEG, timeout_s=0.05)
    assert (caught.value.reason, caught.value.connection_lost) == (Reason.TOTAL_TIMEOUT, False)


async def test_embed_at_a_dead_worker_proves_that_nothing_was_sent(worker: ScriptedServer, toy: GrpcEngine) -> None:
    await worker.stop()
    await until_lost(toy.connection)
    with pytest.raises(EngineFailure) as caught:
        await toy.embed(LEG, timeout_s=TIMEOUT_S)
    assert (caught.value.reason, caught.value.was_sent) == (Reason.WORKER_UNREACHABLE, False)


async def test_protocol_without_embed_is_refused_without_a_call(worker: ScriptedServer, bare: GrpcEngine) -> None:
    with pytest.raises(EngineFailure) as caught:
        await bare.embed(LEG, timeout_s=TIMEOUT_S)
    assert (caught.value.reason, worker.calls) == (Reason.RUNTIME_CANNOT_EMBED, [])


async def test_operation_is_carried_out(worker: ScriptedServer, toy: GrpcEngine) -> None:
    worker.more["FlushCache"] = says("flushed 3 blocks")
    assert await toy.operate(FlushCache(), timeout_s=TIMEOUT_S) == Operated("flushed 3 blocks")
    assert worker.calls[0][1]["authorization"] == "Bearer k"


async def test_failure_under_status_ok_is_one(worker: ScriptedServer, toy: GrpcEngine) -> None:
    worker.more["FlushCache"] = says("")
    with pytest.raises(EngineFailure, match="not idle"):
        await toy.operate(FlushCache(), timeout_s=TIMEOUT_S)


@pytest.mark.parametrize("operation", ALL, ids=lambda operation: type(operation).__name__)
async def test_protocol_without_the_operation_is_refused_by_its_reason(bare: GrpcEngine, operation: Operation) -> None:
    with pytest.raises(EngineFailure) as caught:
        await bare.operate(operation, timeout_s=TIMEOUT_S)
    assert (caught.value.reason, caught.value.code) == (CANNOT[type(operation)], Code.UNIMPLEMENTED)


@pytest.mark.parametrize("operation", [FlushCache(), StopProfile()], ids=lambda operation: type(operation).__name__)
async def test_engine_that_answers_unimplemented_is_refused_by_the_same_reason(
    toy: GrpcEngine, operation: Operation
) -> None:
    with pytest.raises(EngineFailure) as caught:
        await toy.operate(operation, timeout_s=TIMEOUT_S)
    assert caught.value.reason is CANNOT[type(operation)]


async def test_operation_at_a_silent_address_waits_no_longer_than_connecting_may_take(worker: ScriptedServer) -> None:
    connection = Connection(open_channel(worker.url, ChannelOptions()), worker.url)
    client = GrpcEngine(connection, ToyDialect(), None, connect_timeout_s=0.2)
    await worker.stop()
    async with asyncio.timeout(TIMEOUT_S):
        with pytest.raises(EngineFailure):
            await client.operate(StopProfile(), timeout_s=600)
    await client.close()


async def test_described_worker_names_its_adapters(worker: ScriptedServer, toy: GrpcEngine) -> None:
    worker.more["ListAdapters"] = says("poet")
    assert (await toy.describe(timeout_s=TIMEOUT_S)).adapters == (LoadedAdapter("poet"),)


@pytest.mark.parametrize(
    "status", [grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.INTERNAL, grpc.StatusCode.FAILED_PRECONDITION]
)
async def test_engine_that_cannot_list_adapters_has_none_and_is_described_all_the_same(
    worker: ScriptedServer, toy: GrpcEngine, status: grpc.StatusCode
) -> None:
    worker.more["ListAdapters"] = fails(status)
    facts = await toy.describe(timeout_s=TIMEOUT_S)
    assert (facts.model_id, facts.adapters) == ("tiny", ())


async def test_engine_that_once_fails_to_list_adapters_keeps_those_known(
    worker: ScriptedServer, toy: GrpcEngine
) -> None:
    worker.more["ListAdapters"] = says("poet")
    await toy.describe(timeout_s=TIMEOUT_S)
    worker.more["ListAdapters"] = fails(grpc.StatusCode.INTERNAL)
    assert (await toy.describe(timeout_s=TIMEOUT_S)).adapters == (LoadedAdapter("poet"),)


async def test_requests_find_an_adapter_as_soon_as_it_was_listed(worker: ScriptedServer, toy: GrpcEngine) -> None:
    worker.more |= {"ListAdapters": says("poet"), "Embed": says("1")}
    await toy.operate(ListAdapters(), timeout_s=TIMEOUT_S)
    await toy.embed(LEG, timeout_s=TIMEOUT_S)
    assert ToyDialect.seen_facts is not None
    assert ToyDialect.seen_facts.adapters == (LoadedAdapter("poet"),)


def stream(*values: int, then: grpc.StatusCode | None = None) -> Any:
    async def batches(request: bytes, context: Any) -> AsyncIterator[Any]:
        for value in values:
            yield wrap.Int64Value(value=value)
        if then is not None:
            await context.abort(then, "the publisher says so")

    return batches


async def failure_after(call: KvEventCall) -> EngineFailure:
    try:
        while await call.receive() is not None:
            pass
    except EngineFailure as failure:
        return failure
    pytest.fail("the subscription ended well")


async def test_batches_come_in_order_without_those_of_load_alone(worker: ScriptedServer, toy: GrpcEngine) -> None:
    worker.more["SubscribeKvEvents"] = stream(7, -1, -1, 8)
    call = toy.kv_events(resume_at=0)
    got = [await call.receive() for _ in range(4)]
    assert got == [KvBatch(7, ()), KvBatch(8, ()), None, None]


async def test_subscription_says_where_to_resume_and_who_asks(worker: ScriptedServer, toy: GrpcEngine) -> None:
    asked: list[int] = []

    async def batches(request: bytes, context: Any) -> AsyncIterator[Any]:
        asked.append(common_pb2.SubscribeKvEventsRequest.FromString(request).start_sequence_number)
        yield wrap.Int64Value(value=42)

    worker.more["SubscribeKvEvents"] = batches
    await toy.kv_events(resume_at=41).receive()
    assert asked == [41]
    assert worker.calls[0][1]["authorization"] == "Bearer k"


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (grpc.StatusCode.OUT_OF_RANGE, Reason.KV_EVENTS_LOST),
        (grpc.StatusCode.DATA_LOSS, Reason.KV_EVENTS_LOST),
        (grpc.StatusCode.FAILED_PRECONDITION, Reason.RUNTIME_CANNOT_PUBLISH_KV_EVENTS),
        (grpc.StatusCode.INTERNAL, Reason.ENGINE_ERROR),
    ],
)
async def test_trap_13_end_of_a_subscription_says_what_to_do(
    worker: ScriptedServer, toy: GrpcEngine, status: grpc.StatusCode, reason: Reason
) -> None:
    worker.more["SubscribeKvEvents"] = stream(1, then=status)
    call = toy.kv_events(resume_at=0)
    found = await failure_after(call)
    assert (found.reason, found.connection_lost) == (reason, False)
    assert await failure_after(call) is found


@pytest.mark.parametrize("dialect", [ToyDialect(), BareDialect()], ids=["engine", "protocol"])
async def test_engine_or_protocol_without_kv_events_is_refused(worker: ScriptedServer, dialect: ToyDialect) -> None:
    client = client_of(worker, dialect)
    found = await failure_after(client.kv_events(resume_at=0))
    await client.close()
    assert (found.reason, found.code) == (Reason.RUNTIME_CANNOT_PUBLISH_KV_EVENTS, Code.UNIMPLEMENTED)


async def endless(request: bytes, context: Any) -> AsyncIterator[Any]:
    yield wrap.Int64Value(value=1)
    await asyncio.get_running_loop().create_future()


async def test_subscription_over_a_connection_that_breaks_is_lost(worker: ScriptedServer, toy: GrpcEngine) -> None:
    worker.more["SubscribeKvEvents"] = endless
    call = toy.kv_events(resume_at=0)
    await call.receive()
    worker.cut()
    found = await failure_after(call)
    assert (found.reason, found.connection_lost) == (Reason.WORKER_LOST, True)


async def test_cancelled_subscription_ends_a_waiting_receive(worker: ScriptedServer, toy: GrpcEngine) -> None:
    worker.more["SubscribeKvEvents"] = endless
    call = toy.kv_events(resume_at=0)
    await call.receive()
    waiting = asyncio.ensure_future(call.receive())
    await asyncio.sleep(0)
    call.cancel()
    call.cancel()
    with pytest.raises(EngineFailure) as caught:
        await waiting
    assert caught.value.reason is Reason.REQUEST_CANCELLED

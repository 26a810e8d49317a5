"""One Generate call over a real connection: items, ends, deaths, and the proof that nothing was sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc
import pytest
from scripted_server import ScriptedServer, chunk, complete, until_lost
from smg_grpc_proto.generated import sglang_scheduler_pb2 as sglang

from tandem_router.errors import Code, Reason
from tandem_router.model.failure import EngineFailure
from tandem_router.model.request import LegRequest, Sampling
from tandem_router.model.stream import EngineEnd, EngineItem
from tandem_router.ports import EngineCall
from tandem_router.transport.grpc_engine import GrpcEngine

TIMEOUT_S = 5.0


async def drain(call: EngineCall) -> list[EngineItem]:
    found = []
    async with asyncio.timeout(TIMEOUT_S):
        while (item := await call.receive()) is not None:
            found.append(item)
    return found


async def failure_of(call: EngineCall) -> EngineFailure:
    with pytest.raises(EngineFailure) as caught:
        await drain(call)
    return caught.value


async def hang(request: Any, context: Any) -> AsyncIterator[Any]:
    yield chunk(1, total=1)
    await asyncio.Event().wait()


async def silent(request: Any, context: Any) -> AsyncIterator[Any]:
    await asyncio.Event().wait()
    yield


async def test_tokens_arrive_once_and_end(engine: GrpcEngine, leg: LegRequest) -> None:
    found = await drain(engine.generate(leg, timeout_s=TIMEOUT_S))
    assert [token for item in found for token in item.token_ids] == [1, 2]


async def test_receive_after_the_end_stays_none(engine: GrpcEngine, leg: LegRequest) -> None:
    call = engine.generate(leg, timeout_s=None)
    await drain(call)
    assert await call.receive() is None


async def test_request_is_written_before_the_first_receive(
    worker: ScriptedServer, engine: GrpcEngine, leg: LegRequest
) -> None:
    call = engine.generate(leg, timeout_s=TIMEOUT_S)
    async with asyncio.timeout(TIMEOUT_S):
        await worker.generate_ended.wait()
    call.cancel()
    assert len(worker.requests) == 1


async def test_traceparent_travels_as_metadata(worker: ScriptedServer, engine: GrpcEngine, leg: LegRequest) -> None:
    await drain(engine.generate(replace(leg, traceparent="00-a-b-01"), timeout_s=TIMEOUT_S))
    assert worker.metadata[0]["traceparent"] == "00-a-b-01"


async def test_what_is_forwarded_travels_as_metadata_beside_the_worker_s_own(
    worker: ScriptedServer, engine: GrpcEngine, leg: LegRequest
) -> None:
    before = (("x-request-id", "r"), ("tracestate", "a=1"))
    await drain(engine.generate(replace(leg, traceparent="00-a-b-01", metadata=before), timeout_s=TIMEOUT_S))
    assert {"x-request-id": "r", "tracestate": "a=1", "traceparent": "00-a-b-01"}.items() <= worker.metadata[0].items()


async def test_call_without_timeout_has_no_deadline(
    worker: ScriptedServer, engine: GrpcEngine, leg: LegRequest
) -> None:
    left: list[float | None] = []

    async def answer(request: Any, context: Any) -> AsyncIterator[Any]:
        left.append(context.time_remaining())
        yield complete(1, total=1)

    worker.generate = answer
    await drain(engine.generate(leg, timeout_s=None))
    assert left == [None]


async def test_engines_status_is_its_refusal(worker: ScriptedServer, engine: GrpcEngine, leg: LegRequest) -> None:
    async def refuse(request: Any, context: Any) -> AsyncIterator[Any]:
        await context.abort(grpc.StatusCode.UNAVAILABLE, "overloaded")
        yield

    worker.generate = refuse
    found = await failure_of(engine.generate(leg, timeout_s=TIMEOUT_S))
    assert (found.reason, found.connection_lost, found.was_sent) == (Reason.WORKER_REFUSED, False, True)


async def test_connection_that_breaks_mid_stream_is_lost(
    worker: ScriptedServer, engine: GrpcEngine, leg: LegRequest
) -> None:
    worker.generate = hang
    call = engine.generate(leg, timeout_s=TIMEOUT_S)
    await call.receive()
    worker.cut()
    found = await failure_of(call)
    assert (found.reason, found.connection_lost, found.was_sent) == (Reason.WORKER_LOST, True, True)


async def test_server_that_stops_mid_stream_is_lost(
    worker: ScriptedServer, engine: GrpcEngine, leg: LegRequest
) -> None:
    worker.generate = hang
    call = engine.generate(leg, timeout_s=TIMEOUT_S)
    await call.receive()
    await worker.stop()
    assert (await failure_of(call)).connection_lost


async def test_dead_worker_gives_the_proof_that_nothing_was_sent(
    worker: ScriptedServer, engine: GrpcEngine, leg: LegRequest
) -> None:
    await worker.stop()
    await until_lost(engine.connection)
    found = await failure_of(engine.generate(leg, timeout_s=TIMEOUT_S))
    assert (found.reason, found.was_sent, found.connection_lost) == (Reason.WORKER_UNREACHABLE, False, True)


async def test_same_process_is_served_again_after_a_cut(
    worker: ScriptedServer, engine: GrpcEngine, leg: LegRequest
) -> None:
    worker.cut()
    await until_lost(engine.connection)
    assert len(await drain(engine.generate(leg, timeout_s=TIMEOUT_S))) == 3


async def test_another_process_at_the_address_gets_no_request(
    worker: ScriptedServer, engine: GrpcEngine, leg: LegRequest
) -> None:
    worker.cut()
    worker.instance = "i-2"
    await until_lost(engine.connection)
    found = await failure_of(engine.generate(leg, timeout_s=TIMEOUT_S))
    assert (found.was_sent, found.connection_lost, worker.requests) == (False, True, [])


@pytest.mark.parametrize("hangs", [True, False])
async def test_worker_that_will_not_say_who_it_is_gets_no_request(
    worker: ScriptedServer, engine: GrpcEngine, leg: LegRequest, hangs: bool
) -> None:
    async def secretive(request: Any, context: Any) -> Any:
        if hangs:
            await asyncio.Event().wait()
        await context.abort(grpc.StatusCode.INTERNAL, "no")

    worker.cut()
    worker.server_info = secretive
    await until_lost(engine.connection)
    found = await failure_of(engine.generate(leg, timeout_s=0.1))
    assert (found.was_sent, worker.requests) == (False, [])


async def test_cancel_resets_the_call(worker: ScriptedServer, engine: GrpcEngine, leg: LegRequest) -> None:
    worker.generate = hang
    call = engine.generate(leg, timeout_s=None)
    await call.receive()
    call.cancel()
    async with asyncio.timeout(TIMEOUT_S):
        await worker.generate_ended.wait()


async def test_cancel_ends_a_waiting_receive(worker: ScriptedServer, engine: GrpcEngine, leg: LegRequest) -> None:
    worker.generate = silent
    call = engine.generate(leg, timeout_s=None)
    waiting = asyncio.create_task(failure_of(call))
    await asyncio.sleep(0)
    call.cancel()
    assert (await waiting).reason is Reason.REQUEST_CANCELLED


async def test_cancel_before_receive_is_remembered(engine: GrpcEngine, leg: LegRequest) -> None:
    call = engine.generate(leg, timeout_s=None)
    call.cancel()
    call.cancel()
    assert (await failure_of(call)).reason is Reason.REQUEST_CANCELLED


async def test_cancel_while_reconnecting_proves_that_nothing_was_sent(
    worker: ScriptedServer, engine: GrpcEngine, leg: LegRequest
) -> None:
    await worker.stop()
    await until_lost(engine.connection)
    call = engine.generate(leg, timeout_s=None)
    waiting = asyncio.create_task(failure_of(call))
    await asyncio.sleep(0)
    call.cancel()
    found = await waiting
    assert (found.reason, found.was_sent) == (Reason.REQUEST_CANCELLED, False)


async def test_deadline_of_a_leg_is_no_news_about_the_connection(
    worker: ScriptedServer, engine: GrpcEngine, leg: LegRequest
) -> None:
    worker.generate = silent
    found = await failure_of(engine.generate(leg, timeout_s=0.05))
    assert (found.reason, found.code, found.connection_lost) == (Reason.TOTAL_TIMEOUT, Code.DEADLINE_EXCEEDED, False)


@pytest.mark.parametrize("timeout_s", [None, TIMEOUT_S], ids=["no-deadline", "deadline-far-off"])
async def test_deadline_of_the_engines_own_is_its_error_and_not_the_legs(
    worker: ScriptedServer, engine: GrpcEngine, leg: LegRequest, timeout_s: float | None
) -> None:
    async def gives_up(request: Any, context: Any) -> AsyncIterator[Any]:
        await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "waited 1 s in the queue")
        yield b""

    worker.generate = gives_up
    found = await failure_of(engine.generate(leg, timeout_s=timeout_s))
    assert (found.reason, found.code, found.connection_lost) == (Reason.ENGINE_ERROR, Code.DEADLINE_EXCEEDED, False)
    assert "waited 1 s in the queue" in found.sentence


async def test_stream_that_closes_early_is_a_protocol_error(
    worker: ScriptedServer, engine: GrpcEngine, leg: LegRequest
) -> None:
    async def half(request: Any, context: Any) -> AsyncIterator[Any]:
        yield chunk(1, total=1)

    worker.generate = half
    assert (await failure_of(engine.generate(leg, timeout_s=TIMEOUT_S))).reason is Reason.ENGINE_PROTOCOL_ERROR


async def test_bytes_that_are_no_message_are_a_protocol_error(
    worker: ScriptedServer, engine: GrpcEngine, leg: LegRequest
) -> None:
    async def garbage(request: Any, context: Any) -> AsyncIterator[Any]:
        yield b"\xff\xff\xff"

    worker.generate = garbage
    assert (await failure_of(engine.generate(leg, timeout_s=TIMEOUT_S))).reason is Reason.ENGINE_PROTOCOL_ERROR


async def test_response_after_the_last_end_is_a_protocol_error(
    worker: ScriptedServer, engine: GrpcEngine, leg: LegRequest
) -> None:
    async def twice(request: Any, context: Any) -> AsyncIterator[Any]:
        yield complete(1, total=1)
        yield complete(1, total=1)

    worker.generate = twice
    assert (await failure_of(engine.generate(leg, timeout_s=TIMEOUT_S))).reason is Reason.ENGINE_PROTOCOL_ERROR


async def test_failed_call_fails_the_same_way_when_asked_again(
    worker: ScriptedServer, engine: GrpcEngine, leg: LegRequest
) -> None:
    worker.generate = None
    call = engine.generate(leg, timeout_s=TIMEOUT_S)
    assert await failure_of(call) is await failure_of(call)


async def test_choice_ended_by_the_decoder_resets_the_engines_stream(
    worker: ScriptedServer, engine: GrpcEngine, leg: LegRequest
) -> None:
    worker.generate = hang
    stopping = replace(leg, sampling=Sampling(ignore_eos=True, stop_token_ids=(1,)))
    [end] = await drain(engine.generate(stopping, timeout_s=None))
    async with asyncio.timeout(TIMEOUT_S):
        await worker.generate_ended.wait()
    assert isinstance(end, EngineEnd)


async def test_closed_client_fails_its_calls(worker: ScriptedServer, engine: GrpcEngine, leg: LegRequest) -> None:
    worker.generate = hang
    call = engine.generate(leg, timeout_s=None)
    await call.receive()
    await engine.close()
    assert (await failure_of(call)).connection_lost


async def test_stalled_consumer_stops_the_engine_by_flow_control(
    worker: ScriptedServer, engine: GrpcEngine, leg: LegRequest
) -> None:
    written = 0

    async def flood(request: Any, context: Any) -> AsyncIterator[Any]:
        nonlocal written
        big = sglang.GenerateResponse(
            chunk=sglang.GenerateStreamChunk(token_ids=[1], hidden_states=[0.5] * 25_000)
        ).SerializeToString()
        while True:
            yield big
            written += len(big)

    worker.generate = flood
    call = engine.generate(leg, timeout_s=None)
    await call.receive()
    seen = -1
    while seen != written:  # until the engine's writes have come to rest
        seen = written
        for _ in range(200):
            await asyncio.sleep(0.001)
    call.cancel()
    assert written < 32 * 1024 * 1024


async def test_item_is_a_sign_of_life_and_a_mere_answer_is_none(engine: GrpcEngine, leg: LegRequest) -> None:
    await engine.probe(timeout_s=TIMEOUT_S)
    before = engine.last_sign_of_life_s
    started_s = asyncio.get_running_loop().time()
    await drain(engine.generate(leg, timeout_s=TIMEOUT_S))
    assert before is None
    assert engine.last_sign_of_life_s is not None
    assert engine.last_sign_of_life_s >= started_s


async def test_deadline_goes_along(worker: ScriptedServer, engine: GrpcEngine, leg: LegRequest) -> None:
    left: list[float | None] = []

    async def answer(request: Any, context: Any) -> AsyncIterator[Any]:
        left.append(context.time_remaining())
        yield complete(1, total=1)

    worker.generate = answer
    await drain(engine.generate(leg, timeout_s=3.0))
    assert left[0] is not None
    assert 0 < left[0] < 4  # grpc rounds up

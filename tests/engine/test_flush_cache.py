"""FlushCache under both protocols: what it forgets, what it waits for, and how each engine says no."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from smg_grpc_proto.generated import common_pb2
from wire_fixtures import (
    Engine,
    aggregated,
    engine,
    messages,
    new_room,
    pair,
    prompt,
    sglang_request,
    until,
    vllm_prefill,
)
from wire_fixtures import vllm_request as vllm_generate

from tandem_engine.engine import KvEventKind
from tandem_engine.options import Protocol

BOTH = pytest.mark.parametrize("protocol", [Protocol.SGLANG, Protocol.VLLM])


def flush(worker: Engine, protocol: Protocol, timeout_s: float = 0.0) -> Any:
    stub = worker.sglang if protocol is Protocol.SGLANG else worker.vllm
    return stub.FlushCache(common_pb2.FlushCacheRequest(timeout_s=timeout_s))


def generate(worker: Engine, protocol: Protocol, tokens: list[int], count: int) -> Any:
    if protocol is Protocol.SGLANG:
        return worker.sglang.Generate(sglang_request(tokens, max_new_tokens=count))
    return worker.vllm.Generate(vllm_generate(tokens, max_tokens=count))


@BOTH
async def test_an_idle_engine_forgets_every_block_and_says_so(protocol: Protocol) -> None:
    async with engine(protocol=protocol, dp_size=2) as alone:
        cached = []
        for _ in range(2):
            replies = await aggregated(protocol, alone, prompt(40))
            cached.append(replies[0].chunk.cached_tokens)
            assert (await flush(alone, protocol)).success
            assert (await alone.ledger()).cached_pages == 0
        kinds = [event.kind for event in alone.served.station.engine.kv_events(0).since(0) or ()]
    assert cached == [0, 0]
    assert KvEventKind.CLEARED in kinds


@BOTH
async def test_a_busy_engine_refuses_at_once_and_keeps_its_blocks(protocol: Protocol) -> None:
    async with engine(protocol=protocol) as alone:
        call = generate(alone, protocol, prompt(40), 3000)
        await call.read()
        before = alone.served.station.engine.kv_events(0).last_sequence
        reply = await flush(alone, protocol)
        kinds = [event.kind for event in alone.served.station.engine.kv_events(0).since(before) or ()]
        call.cancel()
    assert (reply.success, "in flight" in reply.message) == (False, True)
    assert KvEventKind.CLEARED not in kinds


@BOTH
async def test_with_a_timeout_it_waits_for_the_running_request(protocol: Protocol) -> None:
    async with engine(protocol=protocol) as alone:
        await alone.set_faults(step_latency=0.01)
        call = generate(alone, protocol, prompt(40), 10)
        await call.read()
        flushing = asyncio.ensure_future(flush(alone, protocol, 20.0))
        assert len(await messages(call)) == 10
        assert (await flushing).success
        assert (await alone.ledger()).cached_pages == 0


async def test_sglang_says_no_when_the_wait_is_over() -> None:
    async with engine(protocol=Protocol.SGLANG) as alone:
        await alone.set_faults(step_latency=30.0)
        call = generate(alone, Protocol.SGLANG, prompt(40), 10)
        await until(lambda: alone.served.station.engine.ledger().running == 1)
        assert not (await flush(alone, Protocol.SGLANG, 0.05)).success
        call.cancel()


async def test_vllm_ends_the_wait_with_deadline_exceeded() -> None:
    async with engine(protocol=Protocol.VLLM) as alone:
        await alone.set_faults(step_latency=30.0)
        call = generate(alone, Protocol.VLLM, prompt(40), 10)
        await until(lambda: alone.served.station.engine.ledger().running == 1)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await flush(alone, Protocol.VLLM, 0.05)
        call.cancel()
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize("timeout_s", [-1.0, float("nan"), float("inf")])
async def test_vllm_refuses_a_timeout_that_is_none(timeout_s: float) -> None:
    async with engine(protocol=Protocol.VLLM) as alone:
        with pytest.raises(grpc.aio.AioRpcError, match="timeout_s") as caught:
            await flush(alone, Protocol.VLLM, timeout_s)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_pages_held_for_a_decode_engine_are_not_flushed_away() -> None:
    async with pair(Protocol.VLLM) as (prefill, decode):
        handle = await vllm_prefill(prefill, prompt(40))
        assert not (await flush(prefill, Protocol.VLLM)).success
        await messages(decode.vllm.Generate(vllm_generate(prompt(40), kv=handle)))
        assert await prefill.idle() == (0, 0, 0, 0)
        assert (await flush(prefill, Protocol.VLLM)).success


async def test_pages_offered_in_a_room_are_not_flushed_away() -> None:
    async with pair(Protocol.SGLANG) as (prefill, decode):
        request = sglang_request(prompt(40), room=new_room(), port=prefill.bootstrap_port)
        offering = asyncio.ensure_future(messages(prefill.sglang.Generate(request)))
        await until(lambda: prefill.served.station.engine.ledger().running == 0 < prefill_pages(prefill))
        assert not (await flush(prefill, Protocol.SGLANG)).success
        flushing = asyncio.ensure_future(flush(prefill, Protocol.SGLANG, 20.0))
        assert len(await messages(decode.sglang.Generate(request))) == 9
        await offering
        assert (await flushing).success
        received = await decode.ledger()
    assert (received.pages_received, received.recomputed_blocks) == (2, 0)


def prefill_pages(worker: Engine) -> int:
    return worker.served.station.engine.ledger().held_pages


@BOTH
async def test_an_engine_that_dies_under_a_waiting_flush_does_not_say_flushed(protocol: Protocol) -> None:
    async with engine(protocol=protocol) as alone:
        await alone.set_faults(step_latency=30.0)
        call = generate(alone, protocol, prompt(40), 10)
        await until(lambda: alone.served.station.engine.ledger().running == 1)
        flushing = asyncio.ensure_future(flush(alone, protocol, 20.0))
        await asyncio.wait((asyncio.ensure_future(alone.ledger()),))  # the flush is on its way
        alone.served.station.life.kill("a test")
        with pytest.raises(grpc.aio.AioRpcError, match="EngineDeadError") as caught:
            await flushing
        call.cancel()
    assert caught.value.code() is grpc.StatusCode.INTERNAL


@BOTH
async def test_a_dead_engine_flushes_nothing(protocol: Protocol) -> None:
    async with engine(protocol=protocol) as alone:
        await alone.set_faults(dead_engine=True)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await flush(alone, protocol)
    assert caught.value.code() is grpc.StatusCode.INTERNAL

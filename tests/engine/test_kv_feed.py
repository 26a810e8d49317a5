"""SubscribeKvEvents under both protocols: ranks, resuming, refusals, and the loads between events."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from smg_grpc_proto.generated import common_pb2
from wire_fixtures import Engine, aggregated, engine, prompt, sglang_request, vllm_request
from wire_fixtures import messages as everything

from tandem_engine.options import Protocol
from tandem_engine.services import kv_feed

BOTH = pytest.mark.parametrize("protocol", [Protocol.SGLANG, Protocol.VLLM])


def stub(worker: Engine, protocol: Protocol) -> Any:
    return worker.sglang if protocol is Protocol.SGLANG else worker.vllm


async def subscribe(worker: Engine, protocol: Protocol, start: int = 0, **more: Any) -> Any:
    """A stream that is established: everything from now on comes."""
    request = common_pb2.SubscribeKvEventsRequest(start_sequence_number=start, **more)
    call = stub(worker, protocol).SubscribeKvEvents(request)
    await call.initial_metadata()
    return call


async def read(call: Any) -> Any:
    async with asyncio.timeout(10.0):
        return await call.read()


async def refusal(worker: Engine, protocol: Protocol, start: int) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read(await subscribe(worker, protocol, start))
    return caught.value


@BOTH
async def test_sequence_numbers_rise_by_one_and_blocks_are_chained(protocol: Protocol) -> None:
    async with engine(protocol=protocol) as alone:
        call = await subscribe(alone, protocol)
        await aggregated(protocol, alone, prompt(40))
        batches = [await read(call) for _ in range(2)]
        call.cancel()
    stored = [batch.events[0].stored for batch in batches]
    assert [batch.sequence_number for batch in batches] == [1, 2]
    assert [list(item.blocks[0].token_ids) for item in stored] == [prompt(40)[:16], prompt(40)[16:32]]
    assert not stored[0].HasField("parent_block_hash")
    assert stored[1].parent_block_hash == stored[0].blocks[0].block_hash
    assert not stored[0].HasField("lora_name")


@BOTH
async def test_a_resumed_stream_goes_on_where_it_is_told(protocol: Protocol) -> None:
    async with engine(protocol=protocol) as alone:
        await aggregated(protocol, alone, prompt(60))
        call = await subscribe(alone, protocol, 2)
        numbers = [(await read(call)).sequence_number for _ in range(2)]
        call.cancel()
    assert numbers == [2, 3]


@BOTH
async def test_a_start_that_was_never_reached_means_another_engine(protocol: Protocol) -> None:
    async with engine(protocol=protocol) as alone:
        await aggregated(protocol, alone, prompt(40))
        assert (await refusal(alone, protocol, 99)).code() is grpc.StatusCode.OUT_OF_RANGE


async def test_a_start_that_is_no_longer_kept_is_out_of_range() -> None:
    async with engine(kv_event_history=1) as alone:
        await aggregated(Protocol.SGLANG, alone, prompt(60))
        error = await refusal(alone, Protocol.SGLANG, 1)
    assert (error.code(), "sequence 1 is gone" in (error.details() or "")) == (grpc.StatusCode.OUT_OF_RANGE, True)


@BOTH
async def test_ranks_have_their_own_numbers_so_one_number_cannot_resume_them(protocol: Protocol) -> None:
    async with engine(protocol=protocol, dp_size=2) as alone:
        call = await subscribe(alone, protocol)
        for rank in (1, 0):
            ask: Any = sglang_request if protocol is Protocol.SGLANG else vllm_request
            request = ask(prompt(20, rank))
            request.data_parallel_rank = rank
            await everything(stub(alone, protocol).Generate(request))
        batches = [await read(call) for _ in range(2)]
        call.cancel()
        assert (await refusal(alone, protocol, 1)).code() is grpc.StatusCode.OUT_OF_RANGE
    assert [(batch.dp_rank, batch.sequence_number) for batch in batches] == [(1, 1), (0, 1)]


@BOTH
async def test_an_engine_that_publishes_nothing_is_unimplemented(protocol: Protocol) -> None:
    async with engine(protocol=protocol, kv_events=False) as alone:
        error = await refusal(alone, protocol, 0)
    assert (error.code(), "KV cache events not enabled" in (error.details() or "")) == (
        grpc.StatusCode.UNIMPLEMENTED,
        True,
    )


@BOTH
async def test_loads_between_events_repeat_the_last_number(protocol: Protocol, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_feed, "LOAD_TICK_S", 0.001)
    async with engine(protocol=protocol) as alone:
        await alone.set_faults(step_latency=0.02)
        call = await subscribe(alone, protocol)
        generating = asyncio.create_task(aggregated(protocol, alone, prompt(20)))
        first, *loads = [await read(call) for _ in range(3)]
        await generating
        call.cancel()
    assert (first.sequence_number, first.load.load_only) == (1, False)
    assert [(batch.sequence_number, len(batch.events), batch.load.load_only) for batch in loads] == [(1, 0, True)] * 2
    assert loads[0].load.running_requests == 1
    assert loads[0].load.sample < loads[1].load.sample


async def test_loads_come_before_the_first_event_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_feed, "LOAD_TICK_S", 0.001)
    async with engine() as alone:
        eager = await subscribe(alone, Protocol.SGLANG, load_records_before_first_batch=True)
        plain = await subscribe(alone, Protocol.SGLANG)
        batch = await read(eager)
        await aggregated(Protocol.SGLANG, alone, prompt(20))
        first = await read(plain)
        for call in (eager, plain):
            call.cancel()
    assert (batch.sequence_number, batch.load.load_only) == (0, True)
    assert (first.sequence_number, len(first.events)) == (1, 1)


@BOTH
async def test_a_subscriber_that_falls_behind_is_told_that_it_has_lost_data(protocol: Protocol) -> None:
    async with engine(protocol=protocol, kv_event_queue=2) as alone:
        call = await subscribe(alone, protocol)
        await aggregated(protocol, alone, prompt(200))  # 12 blocks in one step
        numbers = [(await read(call)).sequence_number for _ in range(2)]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await read(call)
    assert (numbers, caught.value.code()) == ([1, 2], grpc.StatusCode.DATA_LOSS)


async def test_what_a_resumed_subscriber_missed_does_not_count_as_unread() -> None:
    async with engine(kv_event_queue=1) as alone:
        await aggregated(Protocol.SGLANG, alone, prompt(100))
        call = await subscribe(alone, Protocol.SGLANG, 1)
        alone.served.station.engine.clear_cache()
        numbers = [(await read(call)).sequence_number for _ in range(7)]
        call.cancel()
    assert numbers == [1, 2, 3, 4, 5, 6, 7]

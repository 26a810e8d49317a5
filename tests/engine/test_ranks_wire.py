"""Data-parallel ranks of one engine, as routers meet them: pins, rooms, loads."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from smg_grpc_proto.generated import sglang_scheduler_pb2, vllm_engine_pb2
from wire_fixtures import (
    Engine,
    engine,
    messages,
    pair,
    prompt,
    sglang_request,
    tokens_of,
    until,
    vllm_request,
)

from tandem_engine.options import Protocol


def computed(worker: Engine) -> list[int]:
    """Prompt tokens computed so far, per rank."""
    return [rank.prompt_tokens for rank in worker.served.station.engine.ledger().ranks]


@pytest.mark.parametrize("rank", [0, 1, 2])
async def test_a_pin_decides_the_rank(rank: int) -> None:
    async with engine(protocol=Protocol.VLLM, dp_size=3) as left, engine(protocol=Protocol.SGLANG, dp_size=3) as right:
        pinned = vllm_request(prompt(20)), sglang_request(prompt(20))
        for request in pinned:
            request.data_parallel_rank = rank
        await messages(left.vllm.Generate(pinned[0]))
        await messages(right.sglang.Generate(pinned[1]))
        assert computed(left) == computed(right) == [20 if at == rank else 0 for at in range(3)]


async def test_requests_without_a_pin_spread_over_the_ranks() -> None:
    async with engine(protocol=Protocol.VLLM, dp_size=2) as alone:
        await alone.set_faults(step_latency=30.0)
        answers = asyncio.gather(*(messages(alone.vllm.Generate(vllm_request(prompt(20, at)))) for at in range(4)))
        await until(lambda: alone.served.station.life.active == 4)
        await alone.set_faults()
        await answers
        assert computed(alone) == [40, 40]


@pytest.mark.parametrize("room", [6, 7, 2**31 - 1])
async def test_a_room_decides_the_rank_of_both_legs(room: int) -> None:
    async with pair(Protocol.SGLANG, dp_size=2) as (prefill, decode):
        request = sglang_request(prompt(40), room=room, port=prefill.bootstrap_port)
        # What SGLang's follow_bootstrap_room does with a pin of the prefill: nothing.
        request.data_parallel_rank = room % 2
        contrary = sglang_request(prompt(40), room=room, port=prefill.bootstrap_port)
        contrary.data_parallel_rank = (room + 1) % 2
        _, replies = await asyncio.gather(
            messages(prefill.sglang.Generate(contrary)), messages(decode.sglang.Generate(request))
        )
        assert len(tokens_of(replies)[0]) == 8
        assert computed(prefill)[room % 2] == 40
        received = [rank.pages_received for rank in decode.served.station.engine.ledger().ranks]
    assert received[room % 2] == 2


@pytest.mark.parametrize("protocol", [Protocol.SGLANG, Protocol.VLLM])
async def test_loads_have_a_row_per_rank_or_the_one_that_was_asked_for(protocol: Protocol) -> None:
    async with engine(protocol=protocol, dp_size=2) as alone:
        if protocol is Protocol.SGLANG:
            every = await alone.sglang.GetLoads(sglang_scheduler_pb2.GetLoadsRequest())
            second = await alone.sglang.GetLoads(sglang_scheduler_pb2.GetLoadsRequest(dp_rank=1))
        else:
            every = await alone.vllm.GetLoads(vllm_engine_pb2.GetLoadsRequest())
            second = await alone.vllm.GetLoads(vllm_engine_pb2.GetLoadsRequest(dp_rank=1))
    assert ([row.dp_rank for row in every.loads], every.dp_rank_count) == ([0, 1], 2)
    assert [row.dp_rank for row in second.loads] == [1]


@pytest.mark.parametrize("rank", [2, -1])
async def test_a_rank_that_does_not_exist_is_invalid(rank: int) -> None:
    request = vllm_request(prompt(3))
    request.data_parallel_rank = rank
    async with engine(protocol=Protocol.VLLM, dp_size=2) as alone:
        with pytest.raises(grpc.aio.AioRpcError, match=r"dp_rank must be in \[0, 2\)") as caught:
            await messages(alone.vllm.Generate(request))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT

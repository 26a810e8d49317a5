"""Many requests at once, some cancelled at any moment: those that end are right, and nothing is left behind."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import grpc
import pytest
from wire_fixtures import (
    SEED,
    Engine,
    aggregated,
    engine,
    messages,
    new_room,
    pair,
    prompt,
    sglang_request,
    tokens_of,
    vllm_prefill,
    vllm_request,
)

from tandem_engine.options import Protocol

BOTH = pytest.mark.parametrize("protocol", list(Protocol), ids=lambda item: item.value)
REQUESTS = 40


async def _one(protocol: Protocol, prefill: Engine, decode: Engine, tokens: list[int], patience_s: float) -> Any:
    """The decode side's tokens, or None when the client lost patience."""
    try:
        async with asyncio.timeout(patience_s):
            if protocol is Protocol.VLLM:
                handle = await vllm_prefill(prefill, tokens)
                return tokens_of(await _read(decode.vllm.Generate(vllm_request(tokens, kv=handle))))
            request = sglang_request(tokens, room=new_room(), port=prefill.bootstrap_port)
            _, replies = await asyncio.gather(
                _read(prefill.sglang.Generate(request)), _read(decode.sglang.Generate(request))
            )
            return tokens_of(replies)
    except (TimeoutError, grpc.aio.AioRpcError):
        return None


async def _read(call: Any) -> list[Any]:
    try:
        replies = await messages(call)
    finally:
        call.cancel()
    # vLLM tells of a failed transfer under status OK.
    assert [reply.complete.finish_reason for reply in replies if reply.HasField("complete")] == ["length"]
    return replies


@BOTH
async def test_storm_leaves_right_answers_and_empty_ledgers(protocol: Protocol) -> None:
    dice = random.Random(SEED)
    print(f"seed {SEED}")
    plan = [(dice.randrange(1, 120), dice.choice((0.01, 0.05, 0.2, 60.0, 60.0))) for _ in range(REQUESTS)]
    async with engine(protocol=protocol) as alone, pair(protocol, num_pages=64, kv_lease_s=3.0) as (prefill, decode):
        await prefill.set_faults(transfer_latency_per_page=0.002)
        results = await asyncio.gather(
            *(_one(protocol, prefill, decode, prompt(length), patience_s) for length, patience_s in plan)
        )
        for (length, patience_s), got in zip(plan, results, strict=True):
            if got is not None:
                assert got == tokens_of(await aggregated(protocol, alone, prompt(length)))
            else:
                assert patience_s < 1.0
        assert (await prefill.idle(), await decode.idle()) == ((0, 0, 0, 0), (0, 0, 0, 0))
        assert (await decode.ledger()).recomputed_blocks == 0

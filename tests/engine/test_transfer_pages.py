"""KV pages on their way: each fault is noticed or changes the output, and nobody keeps a page of a lost transfer."""

from __future__ import annotations

import asyncio
import struct
import time
from typing import Any

import grpc
import pytest
from wire_fixtures import (
    Engine,
    aggregated,
    disaggregated,
    engine,
    messages,
    new_room,
    pair,
    prompt,
    sglang_request,
    tokens_of,
    until,
    vllm_prefill,
    vllm_request,
)

from tandem_engine.bootstrap import flip
from tandem_engine.options import Protocol

SGLANG, VLLM = Protocol.SGLANG, Protocol.VLLM
BOTH = pytest.mark.parametrize("protocol", list(Protocol), ids=lambda item: item.value)
ZERO = (0, 0, 0, 0)


async def _outcome(protocol: Protocol, prefill: Engine, decode: Engine, tokens: list[int]) -> str:
    """How the decode side ended: finish_reason, or the status' name and text."""
    try:
        if protocol is SGLANG:
            request = sglang_request(tokens, room=new_room(), port=prefill.bootstrap_port)
            other = prefill.sglang.Generate(request)
            try:
                replies = await messages(decode.sglang.Generate(request))
            finally:
                other.cancel()
        else:
            replies = await disaggregated(protocol, prefill, decode, tokens)
    except grpc.aio.AioRpcError as error:
        return f"{error.code().name}: {error.details()}"
    return str(replies[-1].complete.finish_reason)


@BOTH
@pytest.mark.parametrize("page", [0, 5, 11])
async def test_dropped_page_fails_the_request(protocol: Protocol, page: int) -> None:
    async with pair(protocol) as (prefill, decode):
        await prefill.set_faults(drop_page=page)
        outcome = await _outcome(protocol, prefill, decode, prompt(200))
        assert outcome.startswith("INTERNAL: Decode transfer failed") if protocol is SGLANG else outcome == "error"
        assert (await prefill.idle(), await decode.idle()) == (ZERO, ZERO)


@BOTH
@pytest.mark.parametrize(("length", "page"), [(200, 0), (200, 11), (2000, 118)])
async def test_flipped_page_changes_the_output_or_fails_the_request(protocol: Protocol, length: int, page: int) -> None:
    async with engine(protocol=protocol) as alone, pair(protocol) as (prefill, decode):
        expected = tokens_of(await aggregated(protocol, alone, prompt(length)))
        await prefill.set_faults(flip_page=page)
        try:
            got = tokens_of(await disaggregated(protocol, prefill, decode, prompt(length)))
        except grpc.aio.AioRpcError:
            got = {}
        assert got != expected


@BOTH
async def test_broken_transfer_fails_the_request_at_once(protocol: Protocol) -> None:
    async with pair(protocol) as (prefill, decode):
        await prefill.set_faults(fail_transfer=True)
        outcome = await _outcome(protocol, prefill, decode, prompt(40))
        assert "transfer failed" in outcome if protocol is SGLANG else outcome == "error"
        assert (await prefill.idle(), await decode.idle()) == (ZERO, ZERO)


@BOTH
async def test_hanging_transfer_fails_after_the_bootstrap_timeout(protocol: Protocol) -> None:
    async with pair(protocol, bootstrap_timeout_s=0.2) as (prefill, decode):
        await prefill.set_faults(hang_transfer=True)
        outcome = await _outcome(protocol, prefill, decode, prompt(40))
        assert "no answer within 0.2 s" in outcome if protocol is SGLANG else outcome == "error"
        assert (await prefill.idle(), await decode.idle()) == (ZERO, ZERO)


@BOTH
async def test_hanging_transfer_goes_on_when_the_fault_is_lifted(protocol: Protocol) -> None:
    async with pair(protocol) as (prefill, decode):
        await prefill.set_faults(hang_transfer=True)
        replies = asyncio.ensure_future(disaggregated(protocol, prefill, decode, prompt(40)))
        await until(lambda: decode.served.station.engine.ledger().rooms == 1)
        await prefill.set_faults()
        assert len(tokens_of(await replies)[0]) == 8


async def _decode_in_transfer(protocol: Protocol, prefill: Engine, decode: Engine) -> tuple[Any, list[Any]]:
    """A decode call whose pages hang at the prefill engine, and the calls to await or cancel with it."""
    await prefill.set_faults(hang_transfer=True)
    if protocol is VLLM:
        handle = await vllm_prefill(prefill, prompt(40))
        call = decode.vllm.Generate(vllm_request(prompt(40), kv=handle))
        others = []
    else:
        request = sglang_request(prompt(40), room=new_room(), port=prefill.bootstrap_port)
        call, others = decode.sglang.Generate(request), [prefill.sglang.Generate(request)]
    reading = asyncio.ensure_future(messages(call))
    # Taken: the knock has come, and the pages that it asks for exist.
    offers = prefill.served.station.bootstrap.offers
    await until(lambda: decode.served.station.engine.ledger().rooms == 1 and offers.taken == 1)
    others = [asyncio.ensure_future(messages(other)) for other in others]
    await until(lambda: prefill.served.station.engine.ledger().generated_tokens == 1)
    return reading, [call, *others]


@BOTH
async def test_prefill_that_dies_in_transfer_fails_the_decode_within_half_a_second(protocol: Protocol) -> None:
    async with pair(protocol) as (prefill, decode):
        reading, others = await _decode_in_transfer(protocol, prefill, decode)
        died_s = time.monotonic()
        crash = asyncio.ensure_future(prefill.served.crash())
        [result] = await asyncio.gather(reading, return_exceptions=True)
        took_s = time.monotonic() - died_s
        await crash
        await asyncio.gather(*others[1:], return_exceptions=True)
        is_failure = isinstance(result, grpc.aio.AioRpcError) or result[-1].complete.finish_reason == "error"
        assert is_failure
        assert took_s < 0.5
        assert await decode.idle() == ZERO


@BOTH
async def test_decode_cancelled_in_transfer_frees_the_pages_of_both(protocol: Protocol) -> None:
    async with pair(protocol) as (prefill, decode):
        reading, others = await _decode_in_transfer(protocol, prefill, decode)
        others[0].cancel()
        await asyncio.gather(reading, *others[1:], return_exceptions=True)
        assert (await prefill.idle(), await decode.idle()) == (ZERO, ZERO)


@BOTH
async def test_decode_that_dies_in_transfer_frees_the_prefills_pages(protocol: Protocol) -> None:
    async with pair(protocol) as (prefill, decode):
        reading, others = await _decode_in_transfer(protocol, prefill, decode)
        await decode.served.crash()
        await asyncio.gather(reading, *others[1:], return_exceptions=True)
        assert await prefill.idle() == ZERO


@BOTH
async def test_decode_cancelled_while_it_waits_for_pages_of_its_own_frees_the_prefills(protocol: Protocol) -> None:
    async with pair(protocol, num_pages=16, max_model_len=256) as (prefill, decode):
        big = {"max_tokens": 150} if protocol is VLLM else {"max_new_tokens": 150}
        blocker = asyncio.ensure_future(disaggregated(protocol, prefill, decode, prompt(100), **big))
        await decode.set_faults(step_latency=0.02)
        await until(lambda: decode.served.station.engine.ledger().running == 1)
        if protocol is VLLM:
            handle = await vllm_prefill(prefill, prompt(40))
            call, others = decode.vllm.Generate(vllm_request(prompt(40), kv=handle, max_tokens=200)), []
        else:
            room = {"room": new_room(), "port": prefill.bootstrap_port}
            request = sglang_request(prompt(40), **room, max_new_tokens=200)
            call, others = decode.sglang.Generate(request), [prefill.sglang.Generate(request)]
        await until(lambda: decode.served.station.engine.ledger().waiting == 1)
        for item in (call, *others):
            item.cancel()
        assert await prefill.idle() == ZERO
        await decode.set_faults()
        assert len(tokens_of(await blocker)[0]) == 150


async def test_unmatched_room_times_out_on_both_sides() -> None:
    async with pair(SGLANG, bootstrap_timeout_s=0.1, kv_lease_s=0.1) as (prefill, decode):
        requests = [sglang_request(prompt(40), room=new_room(), port=prefill.bootstrap_port) for _ in range(2)]
        results = await asyncio.gather(
            messages(prefill.sglang.Generate(requests[0])),
            messages(decode.sglang.Generate(requests[1])),
            return_exceptions=True,
        )
        assert [isinstance(item, grpc.aio.AioRpcError) for item in results] == [True, True]
        assert (await prefill.idle(), await decode.idle()) == (ZERO, ZERO)


async def test_strangers_bytes_on_the_bootstrap_port_change_nothing() -> None:
    async with pair(VLLM) as (prefill, decode):
        reader, writer = await asyncio.open_connection("127.0.0.1", prefill.bootstrap_port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await reader.read() == b""
        writer.close()
        assert len(tokens_of(await disaggregated(VLLM, prefill, decode, prompt(40)))[0]) == 8


async def test_abort_in_transfer_with_the_corruption_fault_lets_the_writer_go_on() -> None:
    async with pair(SGLANG) as (prefill, decode):
        await decode.set_faults(corrupt_on_abort=True)
        reading, others = await _decode_in_transfer(SGLANG, prefill, decode)
        others[0].cancel()
        await until(lambda: decode.served.station.engine.ledger().held_pages == 0)
        await prefill.set_faults()
        await asyncio.gather(reading, *others[1:], return_exceptions=True)
        assert (await decode.ledger()).pages_received == 2


async def test_slow_transfer_takes_its_latency_per_page() -> None:
    async with pair(VLLM) as (prefill, decode):
        await prefill.set_faults(transfer_latency_per_page=0.05)
        started_s = time.monotonic()
        await disaggregated(VLLM, prefill, decode, prompt(64))
        assert time.monotonic() - started_s >= 0.2


def test_flip_changes_every_float_and_undoes_itself() -> None:
    payload = struct.pack("<4f", 0.5, -1.5, 3.0, 0.0)
    flipped = flip(payload)
    assert all(a != b for a, b in zip(struct.unpack("<4I", payload), struct.unpack("<4I", flipped), strict=True))
    assert flip(flipped) == payload

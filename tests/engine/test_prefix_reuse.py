"""Blocks that were computed once are not computed again, and the events say which they are."""

from __future__ import annotations

import dataclasses

from engine_driving import GREEDY, SEEDED, decode_from, generate, outputs, prefill_pages, prompt, request
from engine_model import RunEngine

from tandem_engine.block_hash import chain, root_hash
from tandem_engine.kv_events import KvEventKind


async def test_a_repeated_prompt_reuses_its_full_blocks_with_the_same_tokens(run_engine: RunEngine) -> None:
    async with run_engine() as engine:
        first = await generate(engine, request("a", prompt(100), SEEDED))
        again = await generate(engine, request("b", prompt(100), SEEDED))
    assert (first[0].cached_tokens, again[0].cached_tokens) == (0, 96)
    assert outputs(first) == outputs(again)


async def test_a_whole_cached_prompt_computes_one_token(run_engine: RunEngine) -> None:
    async with run_engine() as engine:
        first = await generate(engine, request("a", prompt(96), SEEDED))
        computed = engine.ledger().prompt_tokens
        again = await generate(engine, request("b", prompt(96), SEEDED))
        assert (engine.ledger().prompt_tokens - computed, again[0].cached_tokens) == (1, 95)
    assert outputs(first) == outputs(again)


async def test_a_next_turn_reuses_the_generated_blocks(run_engine: RunEngine) -> None:
    async with run_engine() as engine:
        answer = outputs(await generate(engine, request("a", prompt(30), dataclasses.replace(GREEDY, max_tokens=40))))[
            0
        ]
        turn = (*prompt(30), *(token for token in answer if token is not None), 7, 8, 9)
        again = await generate(engine, request("b", turn))
    assert again[0].cached_tokens == 64


async def test_a_salt_keeps_caches_apart(run_engine: RunEngine) -> None:
    async with run_engine() as engine:
        await generate(engine, request("a", prompt(64)))
        salted = await generate(engine, request("b", prompt(64), cache_salt="tenant"))
        again = await generate(engine, request("c", prompt(64), cache_salt="tenant"))
    assert (salted[0].cached_tokens, again[0].cached_tokens) == (0, 63)


async def test_running_requests_share_pages(run_engine: RunEngine) -> None:
    async with run_engine(num_pages=16) as engine:
        await generate(engine, request("a", prompt(160), dataclasses.replace(GREEDY, max_tokens=1)))
        handles = [engine.submit(request(f"r{at}", (*prompt(160), at), GREEDY)) for at in range(3)]
        for handle in handles:
            await anext(handle)
        ledger = engine.ledger()
        for handle in handles:
            handle.abort()
    assert (ledger.running, ledger.held_pages) == (3, 10 + 3 * 2)


async def test_stored_events_name_the_chain_of_the_prompt(run_engine: RunEngine) -> None:
    tokens = prompt(50)
    async with run_engine() as engine:
        await generate(engine, request("a", tokens, dataclasses.replace(GREEDY, max_tokens=1)))
        events = engine.kv_events().since(0) or ()
    hashes = chain(root_hash(None, None), tokens, 16)
    assert [event.block_hashes[0] for event in events] == list(hashes)
    assert [event.parent_hash for event in events] == [None, *hashes[:-1]]


async def test_blocks_received_from_a_prefill_are_offered_for_reuse(run_engine: RunEngine) -> None:
    tokens = prompt(64)
    async with run_engine() as prefill, run_engine() as decode:
        await decode_from(decode, tokens, GREEDY, await prefill_pages(prefill, tokens, GREEDY, 3), room=3)
        again = await generate(decode, request("b", tokens))
    assert again[0].cached_tokens == 63


async def test_eviction_under_pressure_is_announced_and_correct(run_engine: RunEngine) -> None:
    async with run_engine(num_pages=10) as engine:
        expected = outputs(await generate(engine, request("a", prompt(100), GREEDY)))
        for at in range(3):
            await generate(engine, request(f"o{at}", prompt(100, at + 1), GREEDY))
        events = engine.kv_events().since(0) or ()
        assert KvEventKind.REMOVED in {event.kind for event in events}
        assert outputs(await generate(engine, request("b", prompt(100), GREEDY))) == expected

"""Prefill here, decode there: the same tokens as one engine alone, and every page counts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from engine_driving import GREEDY, IDLE, SEEDED, decode_from, generate, in_hand, outputs, prefill_pages, prompt, request
from engine_model import RunEngine

from tandem_engine.engine import Engine
from tandem_engine.requests import Phase
from tandem_engine.sampling import SamplingParams


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
@pytest.mark.parametrize("choices", [1, 2])
@pytest.mark.parametrize("length", [1, 15, 16, 17, 32, 200])
async def test_disaggregated_tokens_equal_aggregated_tokens(
    run_engine: RunEngine, length: int, choices: int, sampling: SamplingParams
) -> None:
    sampling, tokens = dataclasses.replace(sampling, n=choices), prompt(length)
    async with run_engine() as alone, run_engine() as prefill, run_engine() as decode:
        expected = outputs(await generate(alone, request("a", tokens, sampling)))
        pages = await prefill_pages(prefill, tokens, sampling, room=5)
        assert outputs(await decode_from(decode, tokens, sampling, pages, room=5)) == expected


@pytest.mark.parametrize("length", [1, 15, 16, 17, 200])
async def test_ledgers_count_the_full_blocks_as_sent_and_received_and_none_as_recomputed(
    run_engine: RunEngine, length: int
) -> None:
    tokens = prompt(length)
    async with run_engine() as prefill, run_engine() as decode:
        await decode_from(decode, tokens, GREEDY, await prefill_pages(prefill, tokens, GREEDY, room=5), room=5)
        sent, ledger = prefill.ledger().pages_sent, decode.ledger()
    assert (sent, ledger.pages_received, ledger.recomputed_blocks) == (length // 16, length // 16, 0)


async def test_a_prefills_token_is_the_decodes_first_token(run_engine: RunEngine) -> None:
    tokens = prompt(40)
    async with run_engine() as prefill, run_engine() as alone:
        first = await generate(prefill, request("p", tokens, SEEDED, phase=Phase.PREFILL))
        whole = await generate(alone, request("a", tokens, SEEDED))
    assert ([item.token_id for item in first], first[0].finish) == ([whole[0].token_id], "length")


async def test_other_page_sizes_work_as_well(run_engine: RunEngine) -> None:
    tokens = prompt(50)
    async with run_engine(page_size=4) as prefill, run_engine(page_size=4) as decode:
        expected = outputs(await generate(prefill, request("a", tokens, SEEDED)))
        pages = await prefill_pages(prefill, tokens, SEEDED, room=5)
        assert outputs(await decode_from(decode, tokens, SEEDED, pages, room=5)) == expected


async def test_two_thousand_tokens_arrive_whole_and_a_flip_at_1900_shows(run_engine: RunEngine) -> None:
    async with run_engine() as prefill, run_engine() as decode:
        pages = await prefill_pages(prefill, prompt(2000), GREEDY, room=5)
        right = await _logprobs(decode, pages, 2000)
        words = np.frombuffer(pages[1900 // 16], dtype=np.uint32).copy()
        words ^= np.uint32(1 << 22)
        pages[1900 // 16] = words.tobytes()
        wrong = await _logprobs(decode, pages, 2000)
        aggregated = await generate(prefill, request("a", prompt(2000), dataclasses.replace(GREEDY, logprobs=0)))
    assert right == [item.logprob for item in aggregated]
    assert wrong != right


async def test_decode_computes_only_the_tail(run_engine: RunEngine) -> None:
    tokens = prompt(200)
    async with run_engine() as prefill, run_engine() as decode:
        emissions = await decode_from(decode, tokens, GREEDY, await prefill_pages(prefill, tokens, GREEDY, 5), room=5)
        assert (decode.ledger().prompt_tokens, emissions[0].cached_tokens) == (8, 192)


async def test_a_decode_does_not_take_its_blocks_from_its_own_cache(run_engine: RunEngine) -> None:
    tokens = prompt(64)
    async with run_engine() as engine:
        await generate(engine, request("a", tokens))
        emissions = await decode_from(engine, tokens, GREEDY, [], room=5)
    assert emissions[-1].finish == "error"


async def _logprobs(engine: Engine, pages: list[bytes], length: int) -> list[float | None]:
    sampling = dataclasses.replace(GREEDY, logprobs=0)
    return [item.logprob for item in await decode_from(engine, prompt(length), sampling, pages, room=5)]


@pytest.mark.parametrize("page", [0, 3, 12])
async def test_flipping_one_pattern_of_a_page_changes_the_result(run_engine: RunEngine, page: int) -> None:
    async with run_engine() as prefill, run_engine() as decode:
        pages = await prefill_pages(prefill, prompt(208), GREEDY, room=5)
        before = await _logprobs(decode, pages, 208)
        words = np.frombuffer(pages[page], dtype=np.uint32).copy()
        words[-64 * 16 :] ^= np.uint32(1 << 22)  # the last layer's values
        pages[page] = words.tobytes()
        assert await _logprobs(decode, pages, 208) != before


@pytest.mark.parametrize("lost", [0, 7, 12])
async def test_a_lost_page_fails_the_request_and_leaves_nothing_behind(run_engine: RunEngine, lost: int) -> None:
    tokens = prompt(208)
    async with run_engine() as prefill, run_engine() as decode:
        pages = await prefill_pages(prefill, tokens, GREEDY, room=5)
        handle = decode.submit(request("d", tokens, phase=Phase.DECODE, room=5))
        for index, page in enumerate(await handle.landing_pages()):
            if index != lost:
                decode.write_page(handle.rank, page, pages[index])
        handle.kv_arrived(13)
        emissions = [item async for item in handle]
        assert ([item.finish for item in emissions], in_hand(decode)) == (["error"], IDLE)


async def test_pages_that_were_lost_are_never_offered_for_reuse(run_engine: RunEngine) -> None:
    async with run_engine() as decode:
        await decode_from(decode, prompt(64), GREEDY, [], room=5)
        assert decode.kv_events().since(0) == ()


async def test_missing_last_pages_are_recomputed_with_the_same_tokens_and_counted(run_engine: RunEngine) -> None:
    tokens = prompt(208)
    async with run_engine() as prefill, run_engine() as decode:
        expected = outputs(await generate(prefill, request("a", tokens)))
        pages = await prefill_pages(prefill, tokens, GREEDY, room=5)
        handle = decode.submit(request("d", tokens, phase=Phase.DECODE, room=5))
        for page, data in list(zip(await handle.landing_pages(), pages, strict=True))[:10]:
            decode.write_page(handle.rank, page, data)
        handle.kv_arrived(10)
        assert outputs([item async for item in handle]) == expected
        assert decode.ledger().recomputed_blocks == 3


async def test_prefill_held_pages_have_the_bits_of_an_aggregated_run_under_other_chunks(run_engine: RunEngine) -> None:
    tokens = prompt(100)
    async with run_engine(prefill_chunk=256) as one, run_engine(prefill_chunk=7) as other:
        left = await prefill_pages(one, tokens, GREEDY, room=5)
        right = await prefill_pages(other, tokens, SEEDED, room=6)
    assert left == right

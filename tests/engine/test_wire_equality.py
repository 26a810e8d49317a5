"""What a pair says is what one engine says, and every page of it really travelled."""

from __future__ import annotations

import pytest
from wire_fixtures import LENGTHS, aggregated, disaggregated, engine, pair, prompt, tokens_of

from tandem_engine.options import Protocol

BOTH = pytest.mark.parametrize("protocol", list(Protocol), ids=lambda item: item.value)


@BOTH
async def test_greedy_pair_equals_one_engine_at_every_length(protocol: Protocol) -> None:
    async with engine(protocol=protocol) as alone, pair(protocol) as (prefill, decode):
        for length in LENGTHS:
            expected = tokens_of(await aggregated(protocol, alone, prompt(length)))
            assert tokens_of(await disaggregated(protocol, prefill, decode, prompt(length))) == expected
            assert len(expected[0]) == 8


@BOTH
async def test_seeded_pair_with_two_choices_equals_one_engine(protocol: Protocol) -> None:
    async with engine(protocol=protocol) as alone, pair(protocol) as (prefill, decode):
        for length in LENGTHS:
            expected = tokens_of(await aggregated(protocol, alone, prompt(length), seed=11, n=2))
            assert tokens_of(await disaggregated(protocol, prefill, decode, prompt(length), seed=11, n=2)) == expected
            assert sorted(expected) == [0, 1]


@BOTH
async def test_ledgers_agree_on_the_pages_that_travelled(protocol: Protocol) -> None:
    async with pair(protocol) as (prefill, decode):
        full_blocks = 0
        for length in LENGTHS:
            await disaggregated(protocol, prefill, decode, prompt(length))
            full_blocks += length // 16
            sent, received = await prefill.ledger(), await decode.ledger()
            assert (sent.pages_sent, received.pages_received) == (full_blocks, full_blocks)
            assert received.recomputed_blocks == 0


@BOTH
async def test_ledgers_of_a_pair_read_zero_after_its_requests(protocol: Protocol) -> None:
    async with pair(protocol) as (prefill, decode):
        for length in LENGTHS:
            await disaggregated(protocol, prefill, decode, prompt(length))
        assert (await prefill.idle(), await decode.idle()) == ((0, 0, 0, 0), (0, 0, 0, 0))


@BOTH
async def test_a_pair_of_two_ranks_keeps_the_pages_of_both(protocol: Protocol) -> None:
    async with engine(protocol=protocol) as alone, pair(protocol, dp_size=2) as (prefill, decode):
        for seed in range(4):
            expected = tokens_of(await aggregated(protocol, alone, prompt(40, seed)))
            assert tokens_of(await disaggregated(protocol, prefill, decode, prompt(40, seed))) == expected

"""What a subscriber of KV events believes of a prefix cache is what the cache has: under load, evictions, flushes, and
after every kind of resuming."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from smg_grpc_proto.generated import common_pb2
from wire_fixtures import SEED, Engine, engine, prompt, sglang_request, vllm_request
from wire_fixtures import messages as everything

from tandem_engine.options import Protocol

BOTH = pytest.mark.parametrize("protocol", [Protocol.SGLANG, Protocol.VLLM])


@dataclass
class Believed:
    """One rank's cache as its events tell it; asserts the laws of the feed on the way."""

    blocks: set[int] = field(default_factory=set)
    sequence: int = 0
    removed: int = 0

    def take(self, batch: Any) -> None:
        if batch.load.load_only:
            assert batch.sequence_number == self.sequence
            return
        assert batch.sequence_number == self.sequence + 1
        self.sequence = batch.sequence_number
        for event in batch.events:
            kind = event.WhichOneof("data")
            if kind == "stored":
                for block in event.stored.blocks:
                    assert len(block.token_ids) == block.block_size == 16
                    assert block.block_hash not in self.blocks
                    self.blocks.add(block.block_hash)
            elif kind == "removed":
                assert self.blocks.issuperset(event.removed.block_hashes)
                self.blocks.difference_update(event.removed.block_hashes)
                self.removed += len(event.removed.block_hashes)
            else:
                self.blocks.clear()


async def subscribe(worker: Engine, protocol: Protocol, start: int) -> Any:
    """A stream that is established: everything from now on comes."""
    stub = worker.sglang if protocol is Protocol.SGLANG else worker.vllm
    call = stub.SubscribeKvEvents(common_pb2.SubscribeKvEventsRequest(start_sequence_number=start))
    await call.initial_metadata()
    return call


async def follow(call: Any, believed: list[Believed], until: list[int]) -> None:
    """Reads until every rank's sequence has come to `until`."""
    async with asyncio.timeout(30.0):
        while any(rank.sequence < end for rank, end in zip(believed, until, strict=True)):
            batch = await call.read()
            believed[batch.dp_rank].take(batch)
    call.cancel()


async def one(worker: Engine, protocol: Protocol, tokens: list[int], rank: int, count: int) -> None:
    if protocol is Protocol.SGLANG:
        request = sglang_request(tokens, max_new_tokens=count)
        call_of = worker.sglang.Generate
    else:
        request = vllm_request(tokens, max_tokens=count)
        call_of = worker.vllm.Generate
    request.data_parallel_rank = rank
    await everything(call_of(request))


async def load(worker: Engine, protocol: Protocol, dice: random.Random, ranks: int) -> None:
    """Prompts with shared beginnings, too many for the pages, and a flush in between."""
    for wave in range(3):
        tokens = [prompt(64, dice.randrange(3)) + prompt(dice.randrange(1, 60), wave) for _ in range(8)]
        await asyncio.gather(
            *(one(worker, protocol, item, at % ranks, dice.randrange(1, 40)) for at, item in enumerate(tokens))
        )
        if wave == 1:
            stub = worker.sglang if protocol is Protocol.SGLANG else worker.vllm
            assert (await stub.FlushCache(common_pb2.FlushCacheRequest(timeout_s=10.0))).success


def truth(worker: Engine, ranks: int) -> tuple[list[set[int]], list[int]]:
    """The blocks that each rank's allocator can find, and each rank's last sequence."""
    caches = [worker.served.station.engine._ranks[rank].cache for rank in range(ranks)]
    return [set(cache._by_hash) for cache in caches], [cache.events.last_sequence for cache in caches]


@BOTH
@pytest.mark.parametrize("ranks", [1, 2])
async def test_events_replayed_from_the_start_give_the_allocators_own_blocks(protocol: Protocol, ranks: int) -> None:
    async with engine(protocol=protocol, dp_size=ranks, num_pages=40) as alone:
        believed = [Believed() for _ in range(ranks)]
        call = await subscribe(alone, protocol, 0)
        await load(alone, protocol, random.Random(SEED), ranks)
        blocks, ends = truth(alone, ranks)
        await follow(call, believed, ends)
    assert [rank.blocks for rank in believed] == blocks
    assert all(rank.removed for rank in believed)  # pages were evicted and used again


@BOTH
async def test_a_subscriber_that_breaks_off_and_resumes_believes_the_same(protocol: Protocol) -> None:
    async with engine(protocol=protocol, num_pages=40) as alone:
        believed = [Believed()]
        dice = random.Random(SEED)
        await load(alone, protocol, dice, 1)
        middle = truth(alone, 1)[1][0] // 2
        await follow(await subscribe(alone, protocol, 1), believed, [middle])
        await load(alone, protocol, dice, 1)
        blocks, ends = truth(alone, 1)
        await follow(await subscribe(alone, protocol, middle + 1), believed, ends)
    assert [rank.blocks for rank in believed] == blocks

"""SubscribeKvEvents: what the prefix cache of one rank stores and removes, as both protocols stream it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import grpc
from smg_grpc_proto.generated import common_pb2 as pb

from tandem_engine.engine import KvEvent, KvEventKind
from tandem_engine.services.station import Context, Station

__all__ = ["QUEUE_LIMIT", "batch", "stream_kv_events"]

QUEUE_LIMIT = 10_000
"""Events kept for a subscriber that does not read; a slower one is told to resync."""

_SIGNED = 1 << 63


async def stream_kv_events(station: Station, request: pb.SubscribeKvEventsRequest, context: Context) -> None:
    """Events after `start_sequence_number` (0: from now on) of every rank, each rank with its own sequence.

    OUT_OF_RANGE when the start is no longer kept, DATA_LOSS when the subscriber was too slow: both mean resync.
    """
    queue: asyncio.Queue[tuple[int, KvEvent] | None] = asyncio.Queue()
    unsubscribe = []

    def tell(rank: int, event: KvEvent) -> None:
        if queue.qsize() < QUEUE_LIMIT:
            queue.put_nowait((rank, event))
        elif queue.qsize() == QUEUE_LIMIT:
            queue.put_nowait(None)

    try:
        for rank in range(station.options.dp_size):
            log = station.engine.kv_events(rank)
            if request.start_sequence_number:
                missed = log.since(request.start_sequence_number - 1)
                if missed is None:
                    text = (
                        f"rank {rank}: sequence {request.start_sequence_number} is gone; oldest {log.oldest_sequence}"
                    )
                    await context.abort(grpc.StatusCode.OUT_OF_RANGE, text)
                for event in missed:
                    queue.put_nowait((rank, event))
            unsubscribe.append(log.subscribe(lambda event, rank=rank: tell(rank, event)))  # type: ignore[misc]
        while True:
            item = await queue.get()
            if item is None:
                await context.abort(grpc.StatusCode.DATA_LOSS, f"more than {QUEUE_LIMIT} events unread")
            await context.write(batch(*item, station.engine.settings.page_size))
    finally:
        for end in unsubscribe:
            end()


def batch(rank: int, event: KvEvent, page_size: int) -> pb.KvEventBatch:
    """One event as a batch of its own."""
    message = pb.KvCacheEvent(event_id=event.sequence)
    if event.kind is KvEventKind.STORED:
        message.stored.blocks.extend(_blocks(event, page_size))
        message.stored.tier = pb.KV_CACHE_TIER_DEVICE
        if event.parent_hash is not None:
            message.stored.parent_block_hash = _signed(event.parent_hash)
    elif event.kind is KvEventKind.REMOVED:
        message.removed.block_hashes.extend(_signed(block) for block in event.block_hashes)
    else:
        message.cleared.SetInParent()
    return pb.KvEventBatch(sequence_number=event.sequence, timestamp=time.time(), events=[message], dp_rank=rank)


def _blocks(event: KvEvent, page_size: int) -> Iterator[pb.KvBlock]:
    for index, block in enumerate(event.block_hashes):
        tokens = event.token_ids[index * page_size : (index + 1) * page_size]
        yield pb.KvBlock(block_hash=_signed(block), token_ids=tokens, block_size=page_size)


def _signed(number: int) -> int:
    """The field is int64, the hash has 64 bits without a sign."""
    return (number + _SIGNED) % (2 * _SIGNED) - _SIGNED

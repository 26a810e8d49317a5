"""The messages of the KV event stream: an event as a batch of its own, and a batch that carries a load alone."""

from __future__ import annotations

import time
from collections.abc import Iterator

from smg_grpc_proto.generated import common_pb2 as pb

from tandem_engine.engine import KvEvent, KvEventKind
from tandem_engine.requests import RankLoad

__all__ = ["batch", "load_batch"]

_SIGNED = 1 << 63


def batch(rank: int, event: KvEvent, page_size: int) -> pb.KvEventBatch:
    """One event as a batch of its own."""
    message = pb.KvCacheEvent(event_id=event.sequence)
    if event.kind is KvEventKind.STORED:
        message.stored.blocks.extend(_blocks(event, page_size))
        message.stored.tier = pb.KV_CACHE_TIER_DEVICE
        if event.parent_hash is not None:
            message.stored.parent_block_hash = _signed(event.parent_hash)
        if event.adapter is not None:
            message.stored.lora_name = event.adapter
    elif event.kind is KvEventKind.REMOVED:
        message.removed.block_hashes.extend(_signed(block) for block in event.block_hashes)
    else:
        message.cleared.SetInParent()
    return pb.KvEventBatch(sequence_number=event.sequence, timestamp=time.time(), events=[message], dp_rank=rank)


def load_batch(load: RankLoad, sequence: int, *, is_dead: bool) -> pb.KvEventBatch:
    """The load of a rank, under the sequence number that the stream carried last; zeros of a dead engine."""
    message = pb.KvEventBatch(sequence_number=sequence, timestamp=time.time(), dp_rank=load.rank)
    message.load.load_only = True
    if not is_dead:
        message.load.running_requests = load.running
        message.load.waiting_requests = load.waiting
        message.load.token_usage = load.token_usage
        message.load.gen_throughput = load.gen_throughput
        message.load.max_running_requests = load.max_running
        message.load.cache_hit_rate = load.cache_hit_rate
        message.load.num_used_tokens = load.used_tokens
        message.load.max_total_num_tokens = load.max_tokens
    return message


def _blocks(event: KvEvent, page_size: int) -> Iterator[pb.KvBlock]:
    for index, block in enumerate(event.block_hashes):
        tokens = event.token_ids[index * page_size : (index + 1) * page_size]
        yield pb.KvBlock(block_hash=_signed(block), token_ids=tokens, block_size=page_size)


def _signed(number: int) -> int:
    """The field is int64, the hash has 64 bits without a sign."""
    return (number + _SIGNED) % (2 * _SIGNED) - _SIGNED

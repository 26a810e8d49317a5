"""A scripted engine's KV events: what a test publishes, streamed with sequence numbers as engines do."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable

import grpc
from smg_grpc_proto.generated import common_pb2 as pb

from tandem_router.testing.grpc_engines.answering import Context
from tandem_router.testing.grpc_engines.script import GrpcScript

__all__ = ["KvFeed"]


class KvFeed:
    """One publisher. A start above the next number is OUT_OF_RANGE too: that number belongs to another life."""

    def __init__(self, script: Callable[[], GrpcScript], *, refusal: grpc.StatusCode) -> None:
        """Args:
        refusal: the status of an engine that was started without a publisher.
        """
        self._script = script
        self._refusal = refusal
        self._kept: deque[pb.KvEventBatch] = deque()
        self._queues: list[asyncio.Queue[pb.KvEventBatch | None]] = []
        self._last = 0

    @property
    def subscribers(self) -> int:
        """Streams that are open."""
        return len(self._queues)

    @property
    def last(self) -> int:
        """Number of the last batch; 0 = none yet."""
        return self._last

    def store(self, *block_hashes: int, parent: int | None = None, dp_rank: int | None = None) -> int:
        """Blocks became reusable; the batch's number."""
        size = self._script().block_size
        stored = pb.KvBlocksStored(
            blocks=[pb.KvBlock(block_hash=value, token_ids=range(size), block_size=size) for value in block_hashes],
            parent_block_hash=parent,
            tier=pb.KV_CACHE_TIER_DEVICE,
        )
        return self._publish(pb.KvCacheEvent(event_id=self._last + 1, stored=stored), dp_rank)

    def remove(self, *block_hashes: int, dp_rank: int | None = None) -> int:
        """Blocks are gone; the batch's number."""
        removed = pb.KvBlocksRemoved(block_hashes=block_hashes)
        return self._publish(pb.KvCacheEvent(event_id=self._last + 1, removed=removed), dp_rank)

    def clear(self) -> int:
        """All blocks are gone; the batch's number."""
        return self._publish(pb.KvCacheEvent(event_id=self._last + 1, cleared=pb.KvCacheCleared()), None)

    def tell_load(self) -> None:
        """A message with a load and no event: it repeats the last number, as vLLM's do ten times a second."""
        self._send(pb.KvEventBatch(sequence_number=self._last, load=pb.EngineLoad(load_only=True, running_requests=1)))

    def skip(self, batches: int = 1) -> None:
        """Lose batches on the way: the next one leaves a gap."""
        self._last += batches

    def lose(self) -> None:
        """End every stream with DATA_LOSS, as a relay that fell behind does."""
        for queue in self._queues:
            queue.put_nowait(None)

    async def stream(
        self, request: pb.SubscribeKvEventsRequest, context: Context
    ) -> AsyncGenerator[pb.KvEventBatch, None]:
        """SubscribeKvEvents: what comes from now on, after what is kept from start_sequence_number on."""
        script, start = self._script(), request.start_sequence_number
        if not script.publishes_kv_events:
            await context.abort(self._refusal, "KV events are not enabled")
        oldest = self._kept[0].sequence_number if self._kept else self._last + 1
        if start and not oldest <= start <= self._last + 1:
            await context.abort(grpc.StatusCode.OUT_OF_RANGE, f"{start} is not kept; {oldest} to {self._last} are")
        queue: asyncio.Queue[pb.KvEventBatch | None] = asyncio.Queue()
        for batch in self._kept:
            if start and batch.sequence_number >= start:
                queue.put_nowait(batch)
        self._queues.append(queue)
        try:
            while (item := await queue.get()) is not None:
                yield item
            await context.abort(grpc.StatusCode.DATA_LOSS, "events were lost")
        finally:
            self._queues.remove(queue)

    def _publish(self, event: pb.KvCacheEvent, dp_rank: int | None) -> int:
        self._last += 1
        batch = pb.KvEventBatch(sequence_number=self._last, events=[event], dp_rank=dp_rank)
        self._kept.append(batch)
        while len(self._kept) > self._script().kv_batches_kept:
            self._kept.popleft()
        self._send(batch)
        return self._last

    def _send(self, batch: pb.KvEventBatch) -> None:
        for queue in self._queues:
            queue.put_nowait(batch)

"""CacheService: has engines forget cached KV. Served on the admin listener."""

from __future__ import annotations

import grpc

from tandem.v1 import cache_service_pb2 as pb
from tandem.v1 import cache_service_pb2_grpc
from tandem_router.ports import Clock
from tandem_router.services.operators import Engines, deadline_of
from tandem_router.wire.operation import flush_of, outcomes_pb, selection_of

__all__ = ["CacheServicer"]

Context = grpc.aio.ServicerContext[object, object]


class CacheServicer(cache_service_pb2_grpc.CacheServiceServicer):
    """Unpacks, has it done, packs."""

    def __init__(self, engines: Engines, clock: Clock) -> None:
        self._engines = engines
        self._clock = clock

    async def FlushCache(self, request: pb.FlushCacheRequest, context: Context) -> pb.FlushCacheResponse:
        """Flush and wait."""
        selection, flush = selection_of(request.workers), flush_of(request)
        outcomes = await self._engines.carry_out(flush, selection, deadline_of(context, self._clock))
        return pb.FlushCacheResponse(outcomes=outcomes_pb(outcomes))

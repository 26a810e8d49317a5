"""The rpcs that SGLang's, vLLM's and TokenSpeed's protocols share with all their messages (`smg.grpc.common`)."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from smg_grpc_proto.generated import common_pb2 as pb

from tandem_router.testing.grpc_engines.answering import Answering, Context
from tandem_router.testing.grpc_engines.kv_feed import KvFeed
from tandem_router.testing.grpc_engines.station import Station

__all__ = ["CommonRpcs"]


class CommonRpcs:
    """Answers them for a servicer, which it stands before among the servicer's bases."""

    _station: Station
    answering: Answering
    feed: KvFeed

    async def FlushCache(self, request: pb.FlushCacheRequest, context: Context) -> pb.FlushCacheResponse:
        return self._station.flush(self.answering, self.feed)

    async def StartProfile(self, request: pb.StartProfileRequest, context: Context) -> pb.ProfileResponse:
        return self._station.profile(starts=True)

    async def StopProfile(self, request: pb.StopProfileRequest, context: Context) -> pb.ProfileResponse:
        return self._station.profile(starts=False)

    async def GetTokenizer(
        self, request: pb.GetTokenizerRequest, context: Context
    ) -> AsyncIterator[pb.GetTokenizerChunk]:
        async for chunk in self._station.tokenizer(context):
            yield chunk

    async def SubscribeKvEvents(
        self, request: pb.SubscribeKvEventsRequest, context: Context
    ) -> AsyncIterator[pb.KvEventBatch]:
        async with contextlib.aclosing(self.feed.stream(request, context)) as batches:
            async for batch in batches:
                yield batch

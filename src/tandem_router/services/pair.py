"""PairService: explains choices and shows the pairs that live now. Served on the admin listener."""

from __future__ import annotations

import grpc

from tandem.v1 import pair_service_pb2 as pb
from tandem.v1 import pair_service_pb2_grpc
from tandem_router.runtime.watch import Watches
from tandem_router.services.contract import TokenRelay
from tandem_router.services.guard import unimplemented
from tandem_router.services.watch import watch_pairs
from tandem_router.wire.checks import present
from tandem_router.wire.filters import checked_pair_filter, pair_matches
from tandem_router.wire.paging import page
from tandem_router.wire.pair import pair_pb
from tandem_router.wire.plan import plan_pb, planned_request_of

__all__ = ["PairServicer"]

Context = grpc.aio.ServicerContext[object, object]


class PairServicer(pair_service_pb2_grpc.PairServiceServicer):
    """Unpacks, asks the relay, packs."""

    def __init__(self, relay: TokenRelay, watches: Watches, max_prompt_bytes: int) -> None:
        self._relay = relay
        self._watches = watches
        self._max_prompt_bytes = max_prompt_bytes

    async def ListPairs(self, request: pb.ListPairsRequest, context: Context) -> pb.ListPairsResponse:
        """A page of the live pairs that match, oldest first; aggregated requests are no pairs."""
        pairs, revision = self._watches.pairs_now()
        wanted = checked_pair_filter(request.filter)
        matching = [pair for pair in pairs if pair_matches(wanted, pair)]
        chosen, token = page(
            matching, lambda pair: pair.id, size=request.page_size, token=request.page_token, filters=request.filter
        )
        packed = [pair_pb(pair) for pair in chosen]
        return pb.ListPairsResponse(pairs=packed, next_page_token=token, revision=revision)

    async def PlanPair(self, request: pb.PlanPairRequest, context: Context) -> pb.PlanPairResponse:
        """What Generate would do now, and why."""
        asked = planned_request_of(request, max_prompt_bytes=self._max_prompt_bytes)
        assumed = request.prompt_tokens if present(request, "prompt_tokens") else None
        return pb.PlanPairResponse(plan=plan_pb(await self._relay.explain(asked, assumed)))

    async def ReservePair(self, request: pb.ReservePairRequest, context: Context) -> pb.ReservePairResponse:
        """Not carried out yet."""
        raise unimplemented("ReservePair")

    async def ReleasePair(self, request: pb.ReleasePairRequest, context: Context) -> pb.ReleasePairResponse:
        """Not carried out yet."""
        raise unimplemented("ReleasePair")

    async def WatchPairs(  # type: ignore[override]  # grpc.aio also takes a coroutine; the stub knows one style
        self, request: pb.WatchPairsRequest, context: Context
    ) -> None:
        """Follow pairs."""
        await watch_pairs(self._watches, request, context)

"""ProfileService: starts and stops the engines' own profilers. Served on the admin listener."""

from __future__ import annotations

import grpc

from tandem.v1 import profile_service_pb2 as pb
from tandem.v1 import profile_service_pb2_grpc
from tandem_router.model.operations import StopProfile
from tandem_router.ports import Clock
from tandem_router.services.operators import Engines, deadline_of
from tandem_router.wire.operation import outcomes_pb, selection_of, start_profile_of

__all__ = ["ProfileServicer"]

Context = grpc.aio.ServicerContext[object, object]


class ProfileServicer(profile_service_pb2_grpc.ProfileServiceServicer):
    """Unpacks, has it done, packs."""

    def __init__(self, engines: Engines, clock: Clock) -> None:
        self._engines = engines
        self._clock = clock

    async def StartProfile(self, request: pb.StartProfileRequest, context: Context) -> pb.StartProfileResponse:
        """Start them."""
        selection, start = selection_of(request.workers), start_profile_of(request)
        outcomes = await self._engines.carry_out(start, selection, deadline_of(context, self._clock))
        return pb.StartProfileResponse(outcomes=outcomes_pb(outcomes))

    async def StopProfile(self, request: pb.StopProfileRequest, context: Context) -> pb.StopProfileResponse:
        """Stop them and wait until traces are written."""
        selection = selection_of(request.workers)
        outcomes = await self._engines.carry_out(StopProfile(), selection, deadline_of(context, self._clock))
        return pb.StopProfileResponse(outcomes=outcomes_pb(outcomes))

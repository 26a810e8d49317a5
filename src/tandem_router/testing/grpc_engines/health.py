"""grpc.health.v1 of a scripted engine: "" and the service's name follow the engine, as the real servicers do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tandem_router.testing.grpc_engines.answering import Context
from tandem_router.testing.grpc_engines.station import Station

__all__ = ["ScriptedHealth"]

_LOOK_AGAIN_S = 0.02


class ScriptedHealth(health_pb2_grpc.HealthServicer):
    """NOT_SERVING while the engine is dead."""

    def __init__(self, station: Station, service: str) -> None:
        self._station = station
        self._names = ("", service)

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Context) -> health_pb2.HealthCheckResponse:
        if request.service not in self._names:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"unknown service {request.service}")
        return self._now()

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        last = None
        while True:
            now = self._now()
            if now != last:
                last = now
                yield now
            await asyncio.sleep(_LOOK_AGAIN_S)

    def _now(self) -> health_pb2.HealthCheckResponse:
        statuses = health_pb2.HealthCheckResponse
        return statuses(status=statuses.NOT_SERVING if self._station.is_dead else statuses.SERVING)

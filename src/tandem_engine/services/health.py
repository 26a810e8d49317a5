"""grpc.health.v1 for an engine: "" and the engine's service name follow its life."""

from __future__ import annotations

import asyncio

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from tandem_engine.services.life import Life

__all__ = ["HealthFollower"]


class HealthFollower:
    """Serves the health service on `server` and keeps it true; tasks that tell watchers belong to `scope`."""

    def __init__(self, life: Life, service: str, scope: asyncio.TaskGroup) -> None:
        self._life = life
        self._names = ("", service)
        self._scope = scope
        self._servicer = health.aio.HealthServicer()

    async def attach(self, server: grpc.aio.Server) -> None:
        """To be called once, before the server starts."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)
        await self._follow()
        self._life.on_change(self._changed)

    def _changed(self) -> None:
        self._scope.create_task(self._follow())

    async def _follow(self) -> None:
        statuses = health_pb2.HealthCheckResponse
        status = statuses.SERVING if self._life.is_serving else statuses.NOT_SERVING
        for name in self._names:
            await self._servicer.set(name, status)

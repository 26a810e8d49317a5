"""grpc.health.v1 on a listener of the loop: Check, List and Watch of the same board that the health thread serves."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tandem_router.services.contract import Board

__all__ = ["HealthServicer"]

_pb: Any = health_pb2
"""The published stubs predate List."""
_Response = health_pb2.HealthCheckResponse
Context = grpc.aio.ServicerContext[Any, Any]

_WATCH_INTERVAL_S = 0.25
"""How soon a Watch tells a change. Polling a table costs a watcher less than waking it through a thread-safe bell."""


class HealthServicer(health_pb2_grpc.HealthServicer):
    """Reads the board."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._is_closed = False

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Context) -> _Response:
        """One name; NOT_FOUND for an unknown one."""
        serving = self._board.serving(request.service)
        if serving is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f'No service is named "{request.service}".')
        return _Response(status=_status(serving))

    async def List(self, request: Any, context: Context) -> Any:
        """Every name; RESOURCE_EXHAUSTED when they are too many for one answer (gRFC A90)."""
        listed = self._board.listed()
        if listed is None:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "There are too many names to list; Check one.")
        statuses = {name: _Response(status=_status(serving)) for name, serving in listed.items()}
        return _pb.HealthListResponse(statuses=statuses)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Context) -> None:
        """The status now and after every change; SERVICE_UNKNOWN, and the watch goes on, for a name not known yet.

        Ends with the call, or with UNAVAILABLE when the server closes.
        """
        last = None
        while not self._is_closed:
            status = _status(self._board.serving(request.service))
            if status != last:
                last = status
                await context.write(_Response(status=status))
            await asyncio.sleep(_WATCH_INTERVAL_S)
        await context.abort(grpc.StatusCode.UNAVAILABLE, "The server has shut down.")

    def close(self) -> None:
        """End every Watch within its interval."""
        self._is_closed = True


def _status(serving: bool | None) -> Any:
    if serving is None:
        return _Response.SERVICE_UNKNOWN
    return _Response.SERVING if serving else _Response.NOT_SERVING

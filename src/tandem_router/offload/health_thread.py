"""grpc.health.v1 on a thread of its own: what probes ask, so that a wedged loop cannot say SERVING, nor time out.

A grpc.aio server accepts every call on the loop: at 300 streams its health answers took up to 89 ms and a wedged loop
answers nothing; a sync server in the same process answered within 28 ms (build-facts; docs/benchmarks.md measures the
router under that load).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tandem_router.offload.health_board import HealthBoard

__all__ = ["HealthThread"]

_THREADS = 16
_STOP_GRACE_S = 0.2
"""For the last answers to leave."""
_MAX_WATCHES = 8
"""Each Watch holds a thread; Checks must always find one."""
_POLLS_PER_STALENESS = 4
"""How often a Watch looks for a stale beat, which nobody can notify it of."""
_OPTIONS = (
    ("grpc.so_reuseport", 0),
    # As on the listeners of the loop: the threads of a vanished client are free again within 40 s.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
)

_pb: Any = health_pb2
"""The published stubs predate List."""
_Response = health_pb2.HealthCheckResponse


class HealthThread:
    """A sync gRPC server that serves one board."""

    def __init__(self, board: HealthBoard, address: str, extend: Callable[[grpc.Server], None] | None = None) -> None:
        """Raises OSError when the address cannot be had.

        address: host:port; port 0 takes any.
        extend: adds further services to the server; they share its threads and must leave Check enough of them.
        """
        self._pool = ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix="tandem-health")
        self._server = grpc.server(self._pool, options=_OPTIONS)
        self._servicer = _BoardServicer(board)
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, self._server)
        if extend is not None:
            extend(self._server)
        try:
            self.port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}: {error}") from error

    def start(self) -> None:
        """Begin to answer."""
        self._server.start()

    def stop(self) -> None:
        """End every call and close the port; returns when it is done."""
        self._servicer.close()
        self._server.stop(_STOP_GRACE_S).wait()
        self._pool.shutdown()


class _BoardServicer(health_pb2_grpc.HealthServicer):
    def __init__(self, board: HealthBoard) -> None:
        self._board = board
        self._watches = threading.BoundedSemaphore(_MAX_WATCHES)
        self._closed = threading.Event()

    def close(self) -> None:
        """End every Watch now."""
        self._closed.set()
        self._board.wake()

    def Check(self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext) -> _Response:
        serving = self._board.serving(request.service)
        if serving is None:
            context.abort(grpc.StatusCode.NOT_FOUND, f'No service is named "{request.service}".')
        return _Response(status=_status(serving))

    def List(self, request: Any, context: grpc.ServicerContext) -> Any:
        listed = self._board.listed()
        if listed is None:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "There are too many names to list; Check one.")
        statuses = {name: _Response(status=_status(serving)) for name, serving in listed.items()}
        return _pb.HealthListResponse(statuses=statuses)

    def Watch(self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext) -> Iterator[_Response]:
        if not self._watches.acquire(blocking=False):
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{_MAX_WATCHES} watches are open; use Check.")
        try:
            last = None
            while context.is_active() and not self._closed.is_set():
                status = _status(self._board.serving(request.service))
                if status != last:
                    last = status
                    yield _Response(status=status)
                self._board.wait(self._board.stale_after_s / _POLLS_PER_STALENESS)
            if context.is_active():
                context.abort(grpc.StatusCode.UNAVAILABLE, "The server has shut down.")
        finally:
            self._watches.release()


def _status(serving: bool | None) -> Any:
    if serving is None:
        return _Response.SERVICE_UNKNOWN
    return _Response.SERVING if serving else _Response.NOT_SERVING

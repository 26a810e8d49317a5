"""A request's place in the queue to protobuf."""

from __future__ import annotations

from tandem.v1 import generate_result_pb2
from tandem_router.model.stream import QueueStatus
from tandem_router.wire.scalars import duration_pb

__all__ = ["queue_pb"]


def queue_pb(status: QueueStatus, request_id: str) -> generate_result_pb2.GenerateResponse:
    """The message; request_id is for the stream's first message, else ""."""
    return generate_result_pb2.GenerateResponse(
        queue=generate_result_pb2.QueueStatus(
            position=status.position, length=status.length, waited=duration_pb(status.waited_s)
        ),
        request_id=request_id,
    )

"""Calls that grpc.aio ends without a status, read in one place: their channel was closed, or grpc would not make them.

Seen with grpcio 1.81 and 1.85: a call on a closed channel raises UsageError; one that runs when its channel is closed
raises CancelledError, although nobody cancelled the task that awaits it; one whose metadata cannot be written raises
InternalError. None of them is an AioRpcError, and a CancelledError that gets through ends whoever awaited the call.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import grpc.aio

from tandem_router.errors import Code, Reason
from tandem_router.model.failure import EngineFailure
from tandem_router.transport.connect_failures import unreachable

if TYPE_CHECKING:
    from tandem_router.transport.connection import Connection

__all__ = ["STATUSLESS", "on_channel", "statusless_failure"]

STATUSLESS = (grpc.aio.BaseError, asyncio.InvalidStateError, asyncio.CancelledError)
"""What grpc.aio raises beside AioRpcError; BaseError is that of UsageError and InternalError."""

_CLOSED = "the connection was closed by the router"


def statusless_failure(error: BaseException, connection: Connection) -> EngineFailure | None:
    """What one of STATUSLESS means; None when the task itself is being cancelled, so that it goes on as it came."""
    where = connection.where
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            return None
        return EngineFailure(Reason.WORKER_LOST, f"{where}: {_CLOSED}", connection_lost=True)
    if isinstance(error, grpc.aio.UsageError) and connection.is_closed:
        return unreachable(where, _CLOSED)
    # grpc has logged what it did not like; its words name objects by their addresses.
    return EngineFailure(
        Reason.INTERNAL_ERROR, f"{where}: grpc did not make the call ({type(error).__name__})", code=Code.INTERNAL
    )


@contextlib.contextmanager
def on_channel(connection: Connection) -> Iterator[None]:
    """Around every use of the channel: only AioRpcError, EngineFailure and the task's own cancellation get out.

    Not per token: there the same is done by hand, with STATUSLESS.
    """
    try:
        yield
    except STATUSLESS as error:
        failure = statusless_failure(error, connection)
        if failure is None:
            raise
        raise failure from None

"""The headers of one call, on their way before its first message and never twice.

grpcio sends headers in one batch with the first message unless they went before. When such a write is cancelled under
way, it does not know that they are sent and puts them beside the status once more; that batch is refused
(GRPC_CALL_ERROR_TOO_MANY_OPERATIONS, seen with grpcio 1.85), the status is lost, and the client waits for good.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

__all__ = ["Headers"]


class Headers:
    """Of a call whose writer may be cancelled at any moment; its handler waits for `settled` before the call ends."""

    def __init__(self, context: grpc.aio.ServicerContext[Any, Any], pairs: tuple[tuple[str, str], ...] = ()) -> None:
        self._context = context
        self._pairs = pairs
        self._sending: asyncio.Task[None] | None = None

    async def sent(self) -> None:
        """Send them if they are not; raises what grpcio raises where the client is gone."""
        if self._sending is None:
            self._sending = asyncio.ensure_future(self._send())
        await asyncio.shield(self._sending)

    async def settled(self) -> None:
        """Return when they are not under way: never begun, sent, or refused; does not raise."""
        if self._sending is not None:
            await asyncio.wait((self._sending,))
            if not self._sending.cancelled():
                self._sending.exception()  # told to the writer, if there still was one

    async def _send(self) -> None:
        await self._context.send_initial_metadata(self._pairs)

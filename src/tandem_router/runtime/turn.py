"""A request's turn: it comes at once, or after a wait in the queue of which the client may be told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tandem_router.core.admission import Standing, Ticket
from tandem_router.model.stream import QueueStatus
from tandem_router.ports import Clock, TokenSink

__all__ = ["Turn"]


class Turn:
    """One request's ticket. `come` is called by whoever frees a slot, `wait` by the request's own task."""

    def __init__(self, ticket: Ticket, *, has_come: bool) -> None:
        self.ticket = ticket
        self._coming: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if has_come:
            self._coming.set_result(None)

    @property
    def has_come(self) -> bool:
        """Whether the request may run."""
        return self._coming.done() and not self._coming.cancelled()

    def come(self) -> None:
        """Let the request run."""
        if not self._coming.done():
            self._coming.set_result(None)

    async def wait(
        self, clock: Clock, standing: Callable[[], Standing | None], interval_s: float | None, sink: TokenSink | None
    ) -> None:
        """Return when the turn has come; until then tell `sink` at once and every `interval_s`; None of either: never.

        Raises what the sink raises.
        """
        began_s = clock.monotonic_s()
        while not self._coming.done():
            if interval_s is not None and sink is not None and (now := standing()) is not None:
                await sink.queued(QueueStatus(now.position, now.length, clock.monotonic_s() - began_s))
            try:
                async with asyncio.timeout(interval_s):
                    await asyncio.shield(self._coming)
            except TimeoutError:
                continue

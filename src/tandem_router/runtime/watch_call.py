"""One running watch: a task that tells its reader everything, and an answer that does not wait for the reader."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from tandem_router.errors import Reason, TandemError
from tandem_router.model.failure import Failure
from tandem_router.runtime.scope import TaskScope

__all__ = ["News", "WatchCall"]


class News:
    """A bell for tasks: all that wait are woken by one `ring`."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Future[None], None] = {}

    def ring(self) -> None:
        """Wake whoever waits; returns at once."""
        for future in self._waiting:
            if not future.done():
                future.set_result(None)
        self._waiting.clear()

    async def wait(self, until_s: float | None = None) -> None:
        """Return at the next ring, or at `until_s` on the loop's clock."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[future] = None
        try:
            async with asyncio.timeout_at(until_s):
                await future
        except TimeoutError:
            pass
        finally:
            self._waiting.pop(future, None)

    def __len__(self) -> int:
        return len(self._waiting)


class WatchCall:
    """One watch, from its first message to its end."""

    def __init__(
        self, scope: TaskScope, tell: Callable[[], Awaitable[None]], name: str, ended: Callable[[WatchCall], None]
    ) -> None:
        """Args:
        tell: sends every message and returns when the watch is complete; may raise TandemError.
        ended: called once, when the watch has its answer.
        """
        self._answer: asyncio.Future[Failure | None] = asyncio.get_running_loop().create_future()
        self._ended = ended
        self._task = scope.spawn(self._run(tell), name)

    async def result(self) -> None:
        """Wait for the end; raises TandemError on a bad one. Cancelling the waiter does not end the watch."""
        failure = await asyncio.shield(self._answer)
        if failure is not None:
            raise failure.to_error()

    def end(self, failure: Failure | None = None) -> None:
        """End the watch with `failure`, or well; at once, also out of a write that a stalled reader keeps waiting."""
        self._settle(failure)
        self._task.cancel()

    async def _run(self, tell: Callable[[], Awaitable[None]]) -> None:
        try:
            await tell()
            self._settle(None)
        except TandemError as error:
            self._settle(Failure.of(error))
        finally:
            self._settle(Failure(Reason.INTERNAL_ERROR, "a fault of the router in a watch; see the log"))

    def _settle(self, failure: Failure | None) -> None:
        if self._answer.done():
            return
        self._answer.set_result(failure)
        self._ended(self)

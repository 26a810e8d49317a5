"""From the reader of a decode leg to the client's sink, so that reading never waits for the client.

A reader that waited for a stalled client would not learn that its engine has died, and DESIGN 4.1 promises an answer
within a second of that, "also when the client is stalled". So the reader puts and goes on, the request's own task
carries items to the sink, and an attempt that is lost interrupts the write that a stalled client keeps waiting.

Chunks that wait are merged: one message then costs what one token did, so a router that is behind catches up instead of
falling further behind. A client that keeps up gets every token as it comes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from tandem_router.model.stream import EngineChunk, EngineItem

__all__ = ["MAX_MERGED", "MAX_PENDING", "Delivery"]

MAX_PENDING = 4096
"""Items that may wait for one client; each is one step's tokens of one choice, so this is some minutes of output."""
MAX_MERGED = 256
"""Items in one message at most, which bounds a message to some kilobytes."""


class Delivery:
    """Pending items of one attempt. `put`, `finish` and `stop` come from readers; one task runs `run`."""

    def __init__(self, deliver: Callable[[EngineItem], Awaitable[None]]) -> None:
        self._deliver = deliver
        self._items: deque[EngineItem] = deque()
        self._news: asyncio.Future[None] | None = None
        self._is_over = False
        self._writer: asyncio.Task[object] | None = None
        self._is_interrupted = False

    def put(self, item: EngineItem) -> bool:
        """Have an item delivered; False, and nothing is kept, when the client is too far behind."""
        if len(self._items) >= MAX_PENDING:
            return False
        self._items.append(item)
        self._wake()
        return True

    def finish(self) -> None:
        """No item follows: `run` returns after the last one."""
        self._is_over = True
        self._wake()

    def stop(self) -> None:
        """Drop what is pending and let `run` return now, also out of a write that waits."""
        self._items.clear()
        self._is_over = True
        self._wake()
        if self._writer is not None and not self._is_interrupted:
            self._is_interrupted = True
            self._writer.cancel()

    async def run(self) -> None:
        """Deliver in order until `finish` or `stop`; raises what the sink raises."""
        task = asyncio.current_task()
        assert task is not None
        cancels_before = task.cancelling()
        try:
            while True:
                while self._items:
                    self._writer = task
                    await self._deliver(self._next())
                    self._writer = None
                if self._is_over:
                    break
                self._news = asyncio.get_running_loop().create_future()
                await self._news
        except asyncio.CancelledError:
            # Ours ends here; one from outside, alone or on top of ours, goes on.
            if not self._is_interrupted or task.uncancel() > cancels_before:
                raise
            return
        finally:
            self._writer = None
        if self._is_interrupted:
            # The write ended in the same step in which it was interrupted: the cancel has not been thrown yet.
            task.uncancel()

    def _next(self) -> EngineItem:
        """The oldest item, with the chunks of the same choice that wait behind it."""
        item = self._items.popleft()
        if not self._items or not isinstance(item, EngineChunk):
            return item
        waiting = [item]
        while self._items and len(waiting) < MAX_MERGED:
            following = self._items[0]
            if not isinstance(following, EngineChunk) or following.choice != item.choice:
                break
            waiting.append(following)
            self._items.popleft()
        last = waiting[-1]
        return EngineChunk(
            item.choice,
            tuple(token for chunk in waiting for token in chunk.token_ids),
            last.prompt_tokens,
            last.cached_tokens,
            tuple(logprob for chunk in waiting for logprob in chunk.logprobs),
        )

    def _wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

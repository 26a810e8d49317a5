"""From the reader of a decode leg to the client's sink, so that reading never waits for the client.

A reader that waited for a stalled client would not learn that its engine has died, and DESIGN 4.1 promises an answer
within a second of that, "also when the client is stalled". So the reader puts and goes on, the request's own task
carries items to the sink, and an attempt that is lost interrupts the write that a stalled client keeps waiting.

Chunks that wait are merged: one message then costs what one token did, so a router that is behind catches up instead of
falling further behind. A client that keeps up gets every token as it comes.

What waits is bounded in bytes, for all choices of a request together: it is counted when it is put and given back when
it has been written. The estimate is from above, so the memory is at most what the setting says.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from tandem_router.model.stream import EngineChunk, EngineItem

__all__ = ["MAX_MERGED", "Delivery", "StreamBuffer", "footprint"]

MAX_MERGED = 256
"""Items in one message at most, which bounds a message to some kilobytes."""

_ITEM_BYTES = 208
"""An item with its empty tuples and its place in the queue, in CPython 3.11 to 3.14 (a test measures it)."""
_TOKEN_BYTES = 40
_LOGPROB_BYTES = 144
_TOP_BYTES = 128
"""One alternative of a token: a pair, its numbers, and its place in a tuple."""


def footprint(item: EngineItem) -> int:
    """Bytes of memory that an item takes, estimated from above. Called once per token.

    Log probabilities of the prompt are not counted: they come once, and a long prompt's would fill the buffer alone.
    """
    size = _ITEM_BYTES + _TOKEN_BYTES * len(item.token_ids)
    if item.logprobs:
        size += sum(_LOGPROB_BYTES + _TOP_BYTES * len(logprob.top) for logprob in item.logprobs)
    return size


class StreamBuffer:
    """How much of one client's output waits, over all its choices."""

    __slots__ = ("_limit_bytes", "held_bytes", "most_bytes")

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self.held_bytes = 0
        self.most_bytes = 0
        """The most that was ever held."""

    def take(self, size: int) -> bool:
        """Count so many bytes; False, and nothing is counted, when they do not fit.

        What comes while nothing waits always fits: it is one message of an engine, which has a limit of its own.
        """
        held = self.held_bytes + size
        if held > self._limit_bytes and self.held_bytes:
            return False
        self.held_bytes = held
        if held > self.most_bytes:
            self.most_bytes = held
        return True

    def give(self, size: int) -> None:
        """Count them no more."""
        self.held_bytes -= size


class Delivery:
    """Pending items of one attempt. `put`, `finish` and `stop` come from readers; one task runs `run`."""

    def __init__(self, deliver: Callable[[EngineItem], Awaitable[None]], buffer: StreamBuffer) -> None:
        self._deliver = deliver
        self._buffer = buffer
        self._held = 0
        """Bytes of ours in the buffer: of what waits and of what is being written."""
        self._items: deque[EngineItem] = deque()
        self._news: asyncio.Future[None] | None = None
        self._is_over = False
        self._writer: asyncio.Task[object] | None = None
        self._is_interrupted = False

    def put(self, item: EngineItem) -> bool:
        """Have an item delivered; False, and nothing is kept, when the client is too far behind."""
        size = footprint(item)
        if not self._buffer.take(size):
            return False
        self._held += size
        self._items.append(item)
        self._wake()
        return True

    @property
    def pending_tokens(self) -> int:
        """Tokens that wait, those that are being written not included."""
        return sum(len(item.token_ids) for item in self._items)

    def finish(self) -> None:
        """No item follows: `run` returns after the last one."""
        self._is_over = True
        self._wake()

    def stop(self) -> None:
        """Drop what is pending and let `run` return now, also out of a write that waits."""
        self._items.clear()
        self._give(self._held)
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
                    item, size = self._next()
                    await self._deliver(item)
                    self._give(size)
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
            self._give(self._held)
        if self._is_interrupted:
            # The write ended in the same step in which it was interrupted: the cancel has not been thrown yet.
            task.uncancel()

    def _next(self) -> tuple[EngineItem, int]:
        """The oldest item, with the chunks of the same choice that wait behind it, and the bytes held for it."""
        item = self._items.popleft()
        if not self._items:
            return item, self._held  # the usual case: nothing is summed up
        if not isinstance(item, EngineChunk):
            return item, footprint(item)
        waiting = [item]
        while self._items and len(waiting) < MAX_MERGED:
            following = self._items[0]
            if not isinstance(following, EngineChunk) or following.choice != item.choice:
                break
            waiting.append(following)
            self._items.popleft()
        last = waiting[-1]
        merged = EngineChunk(
            item.choice,
            tuple(token for chunk in waiting for token in chunk.token_ids),
            last.prompt_tokens,
            last.cached_tokens,
            tuple(logprob for chunk in waiting for logprob in chunk.logprobs),
            next((chunk.prompt_logprobs for chunk in waiting if chunk.prompt_logprobs), ()),
        )
        return merged, sum(map(footprint, waiting))

    def _give(self, size: int) -> None:
        size = min(size, self._held)  # `stop` may have given everything back while a write was ending
        self._held -= size
        self._buffer.give(size)

    def _wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

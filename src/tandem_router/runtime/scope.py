"""A named owner of tasks: whoever starts one here can end all of them, and no exception is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["TaskScope"]

_T = TypeVar("_T")


class TaskScope:
    """Tasks in the order of starting. Unlike a TaskGroup, one task's failure does not end its siblings."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._is_closed = False
        self._emptied: asyncio.Future[None] | None = None

    @property
    def is_closed(self) -> bool:
        """Whether `close` has begun; nothing can be started any more."""
        return self._is_closed

    def spawn(self, coroutine: Coroutine[Any, Any, _T], name: str) -> asyncio.Task[_T]:
        """Start a task. An exception that nobody awaits goes to the loop's exception handler.

        Raises RuntimeError once the scope is closed; the coroutine is closed too, so it does not warn.
        """
        if self._is_closed:
            coroutine.close()
            raise RuntimeError(f"scope {self._name} is closed")
        task = asyncio.get_running_loop().create_task(coroutine, name=f"{self._name}: {name}")
        self._tasks[task] = None
        # The dict drops the task; a task that failed and was never awaited reports itself when it is collected.
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)
        if not self._tasks and self._emptied is not None and not self._emptied.done():
            self._emptied.set_result(None)

    async def settle(self, timeout_s: float) -> bool:
        """Wait until no task runs, at most `timeout_s`; whether that was reached. One waiter at a time."""
        if not self._tasks:
            return True
        self._emptied = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout_s):
                await self._emptied
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Cancel what runs and wait until all of it has ended; idempotent. Not for use by a task of the scope."""
        self._is_closed = True
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            task = next(iter(self._tasks))
            try:
                await task
            except asyncio.CancelledError:
                if not task.cancelled():
                    raise  # we are cancelled, not the task
            except Exception as error:
                task.get_loop().call_exception_handler({"message": f"{task.get_name()} failed", "exception": error})
            self._tasks.pop(task, None)

    def __len__(self) -> int:
        return len(self._tasks)

    def __repr__(self) -> str:
        return f"<TaskScope {self._name}: {len(self._tasks)} tasks>"

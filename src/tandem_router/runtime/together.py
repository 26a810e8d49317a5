"""Run several pieces of one call side by side: all end well, or the first failure ends them all.

asyncio.TaskGroup would do, but it cancels its children in the order of a set, which is another one in every process;
the simulation needs the same order each time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

__all__ = ["run_together"]


async def run_together(pieces: Sequence[Coroutine[Any, Any, None]], name: str) -> None:
    """Return when all pieces have ended well; raise the first failure after the others have been cancelled."""
    if not pieces:
        return
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(piece, name=f"{name} {index}") for index, piece in enumerate(pieces)]
    settled: asyncio.Future[None] = loop.create_future()

    def ended(task: asyncio.Task[None]) -> None:
        has_failed = task.cancelled() or task.exception() is not None
        if not settled.done() and (has_failed or all(other.done() for other in tasks)):
            settled.set_result(None)

    for task in tasks:
        task.add_done_callback(ended)
    try:
        await settled
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            while not task.done():
                try:
                    await asyncio.shield(task)
                except (asyncio.CancelledError, Exception):
                    continue  # its own end, looked at below; ours is raised again when the block is left
    for task in tasks:
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error

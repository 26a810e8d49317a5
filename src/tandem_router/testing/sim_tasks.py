"""What a SimLoop reads off tasks, callbacks and generators; the few places that know how asyncio is made inside."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

__all__ = ["close_generator", "exception_of", "is_task_step", "is_unretrieved", "name_of", "where"]


def is_task_step(callback: Callable[..., object]) -> bool:
    owner = getattr(callback, "__self__", None)
    return isinstance(owner, asyncio.Task) and callback != owner.cancel


def is_unretrieved(task: asyncio.Task[Any]) -> bool:
    # The flag that makes asyncio log "exception was never retrieved"; it logs when the task is collected, which is not
    # at a repeatable moment, so it is read here instead.
    return bool(getattr(task, "_log_traceback", False))


def exception_of(task: asyncio.Task[Any]) -> BaseException | None:
    return None if task.cancelled() else task.exception()


def where(task: asyncio.Task[Any]) -> str:
    awaited: Any = task.get_coro()
    place = "its end"
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "ag_frame", None)
        if frame is not None:
            place = f"{frame.f_code.co_qualname} line {frame.f_lineno}"
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "ag_await", None)
    return place


def name_of(generator: AsyncGenerator[Any, Any]) -> str:
    return str(getattr(generator, "__qualname__", ""))


async def close_generator(generator: AsyncGenerator[Any, Any]) -> None:
    await generator.aclose()

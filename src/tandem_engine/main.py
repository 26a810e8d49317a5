"""`python -m tandem_engine`: signals, and the line that says where the engine serves."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence

from tandem_engine.config import ModelFolderError
from tandem_engine.flags import parse_options
from tandem_engine.options import EngineOptions
from tandem_engine.server import serve

__all__ = ["main", "parse_options", "run_engine"]

PARENT_POLL_S = 0.5
"""How often a parent is looked for where the system cannot tell of its end."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves until a signal. Exit codes: 0 ended as asked, 1 could not serve, 2 bad flags or bad files they name."""
    try:
        options = parse_options(arguments)
        if options.tls is not None:
            options.tls.check()
    except ValueError as error:
        print(f"tandem_engine: {error}", file=sys.stderr)
        return 2
    try:
        run_engine(options)
    except (ModelFolderError, OSError, RuntimeError) as error:
        print(f"tandem_engine: {error}", file=sys.stderr)
        return 1
    return 0


def run_engine(options: EngineOptions) -> None:
    """Serves until SIGTERM or SIGINT, or until the parent process ends.

    When it serves it prints one JSON line: listen, bootstrap_port, pid. The first signal lets running requests finish
    within the grace; a second one, and the parent's end, end everything at once. Raises what `serve` raises.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(name)s: %(message)s")
    asyncio.run(_run(options))


async def _run(options: EngineOptions) -> None:
    asked, insisted = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (insisted if asked.is_set() else asked).set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    async with serve(options) as served:
        orphaned = asyncio.create_task(_parent_ended(options.parent_pid))
        line = {"listen": served.listen, "bootstrap_port": served.bootstrap_port, "pid": os.getpid()}
        print(json.dumps(line), flush=True)
        try:
            await _first(orphaned, asyncio.create_task(asked.wait()))
            if not orphaned.done():
                drain = asyncio.create_task(served.drain(options.grace_s))
                await _first(orphaned, drain, asyncio.create_task(insisted.wait()))
                drain.cancel()
        finally:
            orphaned.cancel()


async def _first(*tasks: asyncio.Task[object] | asyncio.Task[bool] | asyncio.Task[None]) -> None:
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)


async def _parent_ended(pid: int | None) -> None:
    """Returns when process `pid` has ended; never when there is none to watch."""
    if pid is None:
        await asyncio.get_running_loop().create_future()
        return
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    except (AttributeError, OSError):
        while _exists(pid):  # noqa: ASYNC110 - another process sets no event
            await asyncio.sleep(PARENT_POLL_S)
        return
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

"""Whether the engine behind the wire lives. Real engines die of some requests while their process goes on answering."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tandem_engine.engine import Engine
from tandem_engine.faults import Faults

__all__ = ["Life"]

_log = logging.getLogger(__name__)


class Life:
    """One engine's life: it begins alive and may be killed once, for good; the dead_engine fault only plays dead."""

    def __init__(self, engine: Engine, faults: Faults) -> None:
        self._engine = engine
        self._faults = faults
        self._killed: str | None = None
        self._stopping = False
        self._listeners: list[Callable[[], None]] = []
        self._started_s = time.monotonic()
        self.started_at_s = time.time()
        self.last_receive_s = 0.0
        """Wall time of the last request, seconds since 1970; 0 before the first."""
        self._active = 0
        self._idle = asyncio.Event()
        self._idle.set()
        faults.on_change(lambda _: self._tell())

    @property
    def cause_of_death(self) -> str | None:
        """Why the engine is dead, None while it lives."""
        if self._killed is not None:
            return self._killed
        if self._engine.failure is not None:
            return f"the step loop failed: {self._engine.failure}"
        return "fault: dead_engine" if self._faults.plan.dead_engine else None

    @property
    def is_dead(self) -> bool:
        return self.cause_of_death is not None

    @property
    def is_killed(self) -> bool:
        """True after `kill`: for good, unlike the dead_engine fault."""
        return self._killed is not None

    @property
    def is_stopping(self) -> bool:
        return self._stopping

    @property
    def is_serving(self) -> bool:
        return not self.is_dead and not self._stopping

    @property
    def uptime_s(self) -> float:
        return time.monotonic() - self._started_s

    @property
    def active(self) -> int:
        """Generate calls that are open."""
        return self._active

    @contextmanager
    def call(self) -> Iterator[None]:
        """One open Generate call."""
        self._active += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._active -= 1
            if not self._active:
                self._idle.set()

    async def idle(self) -> None:
        """Returns when no Generate call is open."""
        await self._idle.wait()

    def received(self) -> None:
        """A request has come."""
        self.last_receive_s = time.time()

    def kill(self, cause: str) -> None:
        """The engine dies now: every request ends, nothing begins, the process stays. Later calls change nothing."""
        if self._killed is None:
            self._killed = cause
            _log.error("engine died: %s", cause)
            self._engine.stop()
            self._tell()

    def begin_stopping(self) -> None:
        """The process was asked to end: running requests go on, health says NOT_SERVING."""
        self._stopping = True
        self._tell()

    def step_loop_failed(self) -> None:
        """The step loop raised; `cause_of_death` knows why."""
        self._tell()

    def on_change(self, listener: Callable[[], None]) -> None:
        """Has `listener` called after every change of health."""
        self._listeners.append(listener)

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()

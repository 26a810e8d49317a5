"""The production bodies of Clock, Ids and Rng: the one place where time and chance come from the machine."""

from __future__ import annotations

import asyncio
import random
import time
import uuid

__all__ = ["LoopClock", "SystemIds", "SystemRng"]


class LoopClock:
    """The event loop's own clock, so that a deadline and `loop.call_at` mean the same moment."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def monotonic_s(self) -> float:
        """Seconds on the loop's clock."""
        return self._loop.time()

    def wall_s(self) -> float:
        """Seconds since the epoch."""
        return time.time()


class SystemIds:
    """Random UUIDs of version 4."""

    def uuid(self) -> str:
        """A fresh canonical UUID."""
        return str(uuid.uuid4())


class SystemRng:
    """A generator of its own, seeded by the operating system: `random`'s global one may be seeded by a library."""

    def __init__(self) -> None:
        self._random = random.Random()

    def random(self) -> float:
        """A float in [0, 1)."""
        return self._random.random()

"""Clock, Ids and Rng for a simulated run: ports.Clock, ports.Ids and ports.Rng made of a loop and a seed."""

from __future__ import annotations

import asyncio
import random
import uuid

__all__ = ["LoopClock", "SeededIds", "SeededRng"]


class LoopClock:
    """The time of a loop; wall time runs along with it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, wall_start_s: float = 1_800_000_000.0) -> None:
        """Args:
        loop: usually a SimLoop.
        wall_start_s: seconds since the epoch at the moment of construction (the default lies in January 2027).
        """
        self._loop = loop
        self._wall_offset_s = wall_start_s - loop.time()

    def monotonic_s(self) -> float:
        """The loop's time."""
        return self._loop.time()

    def wall_s(self) -> float:
        """Seconds since the epoch."""
        return self._wall_offset_s + self._loop.time()


class SeededIds:
    """UUIDs of version 4 from a seed."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(f"ids {seed}")

    def uuid(self) -> str:
        """A fresh canonical UUID."""
        return str(uuid.UUID(int=self._rng.getrandbits(128), version=4))


class SeededRng:
    """Numbers from a seed and the name of what they are for, so one user more does not change another's numbers."""

    def __init__(self, seed: int, purpose: str = "") -> None:
        self._rng = random.Random(f"{purpose} {seed}")

    def random(self) -> float:
        """A float in [0, 1)."""
        return self._rng.random()

"""What is serving, as one table that the loop writes and any thread reads.

The loop must beat: a table without a fresh beat says NOT_SERVING for everything, since whoever wrote SERVING there may
be wedged.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

__all__ = ["MAX_LISTED", "HealthBoard"]

MAX_LISTED = 100
"""Most names in one answer to List; the limit of grpc-go and grpc-java (gRFC A90: more is RESOURCE_EXHAUSTED)."""


class HealthBoard:
    """Names and whether they serve. Every method may be called from any thread."""

    def __init__(self, *, stale_after_s: float, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        """stale_after_s: age of the last beat from which on nothing serves."""
        self._stale_after_s = stale_after_s
        self._monotonic_s = monotonic_s
        self._changed = threading.Condition()
        self._serving: dict[str, bool] = {}
        self._beat_at_s = monotonic_s()

    @property
    def stale_after_s(self) -> float:
        """Age of the last beat from which on nothing serves."""
        return self._stale_after_s

    def beat(self) -> None:
        """The loop turns."""
        with self._changed:
            was_stale = self._is_stale()
            self._beat_at_s = self._monotonic_s()
            if was_stale:
                self._changed.notify_all()

    def put(self, serving: Mapping[str, bool]) -> None:
        """Replace the whole table; names that are not in it are unknown from now on."""
        with self._changed:
            if serving != self._serving:
                self._serving = dict(serving)
                self._changed.notify_all()

    def serving(self, name: str) -> bool | None:
        """Whether a name serves; None for an unknown name."""
        with self._changed:
            known = self._serving.get(name)
            return None if known is None else known and not self._is_stale()

    def listed(self) -> dict[str, bool] | None:
        """Every name and whether it serves; None when they are more than MAX_LISTED."""
        with self._changed:
            if len(self._serving) > MAX_LISTED:
                return None
            is_stale = self._is_stale()
            return {name: serving and not is_stale for name, serving in self._serving.items()}

    def wait(self, timeout_s: float) -> None:
        """Return at the next change, or after `timeout_s`; growing stale is no change. Blocks: not for the loop."""
        with self._changed:
            self._changed.wait(timeout_s)

    def wake(self) -> None:
        """Let every `wait` return now."""
        with self._changed:
            self._changed.notify_all()

    def _is_stale(self) -> bool:
        return self._monotonic_s() - self._beat_at_s > self._stale_after_s

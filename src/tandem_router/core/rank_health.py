"""Is one rank of a worker fit for requests while its siblings are: legs that fail in a row, per rank and life.

Probes and connections speak for the whole process, and no engine's loads say how a rank is; only its legs tell. So what
counts is an engine that fails on its own: not a broken connection (the process is in question), not a refusal (load),
not a failed transfer (two workers share it). A request that every rank fails on cannot take a rank out by itself as
long as others succeed in between, and the last healthy rank stays in: then it is the worker that probes must judge.

A rank that is out gets no requests, so nothing would ever clear it: after a while it is tried again, and then its next
failure takes it out at once, its next success clears it.
"""

from __future__ import annotations

from collections.abc import Callable

from tandem_router.errors import Reason
from tandem_router.model.ids import RankKey

__all__ = ["FAILURES", "TRIAL_AFTER_S", "RankHealths"]

FAILURES = 3
"""In a row, until a rank is out; as `HealthSettings.failure_threshold` for the whole worker."""
TRIAL_AFTER_S = 30.0
"""Until a rank that is out is tried again."""
_COUNTED = frozenset({Reason.ENGINE_ERROR, Reason.ENGINE_PROTOCOL_ERROR})


class RankHealths:
    """Failures in a row of every rank that has any."""

    def __init__(self) -> None:
        self._failures: dict[RankKey, int] = {}

    def failed(self, key: RankKey, reason: Reason) -> bool:
        """Count a leg's failure; whether the rank should be out now."""
        if reason not in _COUNTED:
            return False
        count = self._failures.get(key, 0) + 1
        self._failures[key] = count
        return count >= FAILURES

    def succeeded(self, key: RankKey) -> None:
        """A leg ended well: nothing is held against the rank any more."""
        self._failures.pop(key, None)

    def on_trial(self, key: RankKey) -> None:
        """The rank is in again, for one failure."""
        self._failures[key] = FAILURES - 1

    def forget(self, key: RankKey) -> None:
        """That life is over."""
        self._failures.pop(key, None)

    def retain(self, is_current: Callable[[RankKey], bool]) -> None:
        """Forget every life that is over: nothing else tells of those that ended between two failures."""
        self._failures = {key: count for key, count in self._failures.items() if is_current(key)}

    def __len__(self) -> int:
        return len(self._failures)

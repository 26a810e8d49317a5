"""The one attempt loop's decisions: whether another attempt follows, when, and where not.

A retry is allowed only while the client has seen no token, while time is left, and when the reason says that another
worker may do better. (A decode request that provably never left does not come here: `core.pair` moves its handle to
another decode worker within the same attempt.)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tandem_router.errors import TABLE
from tandem_router.model.failure import Failure
from tandem_router.model.ids import WorkerId
from tandem_router.model.settings import RetrySettings

__all__ = ["AttemptLoop", "GiveUp", "Retry"]


@dataclass(frozen=True, slots=True)
class Retry:
    """Try again after a pause."""

    after_s: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Answer the client with this."""

    failure: Failure


class AttemptLoop:
    """The attempts of one client call: their number, and the workers that have failed it."""

    __slots__ = ("_settings", "attempts", "avoid")

    def __init__(self, settings: RetrySettings) -> None:
        self._settings = settings
        self.attempts = 0
        """Attempts begun."""
        self.avoid: dict[WorkerId, None] = {}
        """Workers that failed an attempt, in order; avoided while there is another choice."""

    def begin(self) -> int:
        """Count an attempt; its number, from 1."""
        self.attempts += 1
        return self.attempts

    def decide(
        self,
        failure: Failure,
        *,
        blamed: Iterable[WorkerId],
        is_committed: bool,
        now_s: float,
        deadline_s: float | None,
        random: float,
    ) -> Retry | GiveUp:
        """What follows a failed attempt.

        blamed: the workers whose legs failed, avoided from now on.
        random: in [0, 1), for the jitter of the pause.
        """
        self.avoid.update(dict.fromkeys(blamed))
        if is_committed or not TABLE[failure.reason].retryable or self.attempts >= self._settings.max_attempts:
            return GiveUp(failure)
        pause_s = self._pause_s(random)
        if deadline_s is not None and now_s + pause_s >= deadline_s:
            return GiveUp(failure)
        return Retry(pause_s)

    def _pause_s(self, random: float) -> float:
        settings = self._settings
        pause_s: float = settings.initial_backoff_s * settings.multiplier ** (self.attempts - 1)
        pause_s = min(pause_s, settings.max_backoff_s)
        return pause_s * (1 - settings.jitter + settings.jitter * random)

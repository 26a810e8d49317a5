"""What an attempt consists of: its legs, the moments it passed, and how it ended."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from tandem_router.model.failure import Failure
from tandem_router.model.ids import WorkerId
from tandem_router.model.pairing import LegRole
from tandem_router.policies.contract import Candidate
from tandem_router.ports import EngineCall
from tandem_router.runtime.prefill_watch import PrefillWatch

__all__ = ["AttemptLeg", "Boundaries", "Lost", "Won"]


@dataclass(frozen=True, slots=True)
class Won:
    """The stream ended well."""


@dataclass(frozen=True, slots=True)
class Lost:
    """The attempt failed; `blamed` are the workers that another attempt should avoid."""

    failure: Failure
    blamed: tuple[WorkerId, ...]
    is_committed: bool


@dataclass(slots=True)
class AttemptLeg:
    """One reserved slot and, once sent, the call on it."""

    role: LegRole
    candidate: Candidate
    id: str
    call: EngineCall | None = None
    task: asyncio.Task[None] | None = None
    grace: asyncio.TimerHandle | None = None
    prefill_watch: PrefillWatch | None = None
    """Of a decode leg that would outwait its prefill worker, until its first item."""
    is_closed: bool = False

    @property
    def where(self) -> dict[str, str]:
        """The leg as a failure's metadata name it."""
        candidate = self.candidate
        return {"leg": self.role.lower(), "worker_id": candidate.worker.id, "dp_rank": str(candidate.dp_rank)}

    def end_timers(self) -> None:
        """Nothing is waited for any more; idempotent."""
        if self.grace is not None:
            self.grace.cancel()
        if self.prefill_watch is not None:
            self.prefill_watch.stop()


@dataclass(slots=True)
class Boundaries:
    """Moments of an attempt on the router's monotonic clock; None while not reached."""

    planned_s: float
    sent_s: float | None = None
    prefill_ended_s: float | None = None
    first_token_s: float | None = None

"""Which workers an operation is for, and how it went on each."""

from __future__ import annotations

from dataclasses import dataclass

from tandem_router.model.failure import Failure
from tandem_router.model.ids import WorkerId

__all__ = ["WorkerOutcome", "WorkerSelection"]


@dataclass(frozen=True, slots=True)
class WorkerSelection:
    """Exactly one of the two is set."""

    worker_ids: tuple[WorkerId, ...] = ()
    """These, each once."""
    model: str = ""
    """Every READY worker that serves it, by id or alias."""


@dataclass(frozen=True, slots=True)
class WorkerOutcome:
    """How an operation went on one worker."""

    worker_id: WorkerId
    message: str = ""
    """The engine's own words."""
    failure: Failure | None = None
    """None = it went well."""

"""What happened to workers and jobs: the only way that state changes.

Every event has a store-wide `revision` (contiguous, from 1) and the wall time `at_s` at which it was decided. Replaying
all events in order gives the same registry; that is what a Store keeps and what watches will send.
"""

from __future__ import annotations

from dataclasses import dataclass

from tandem_router.model.failure import Failure
from tandem_router.model.ids import JobId, WorkerId
from tandem_router.model.job import JobState, JobStep, JobType
from tandem_router.model.spec import WorkerSpec
from tandem_router.model.worker import Rank, WorkerFacts, WorkerStatus

__all__ = [
    "ConditionChanged",
    "DrainRequested",
    "Event",
    "FactsRead",
    "JobCreated",
    "JobEnded",
    "JobForgotten",
    "JobStarted",
    "JobStepChanged",
    "WorkerConnected",
    "WorkerCreated",
    "WorkerRemoved",
    "WorkerStatusChanged",
]


@dataclass(frozen=True, slots=True)
class WorkerCreated:
    """A URL is reserved under a fresh id; the worker is PENDING."""

    revision: int
    at_s: float
    worker_id: WorkerId
    url: str
    """Canonical."""
    spec: WorkerSpec
    has_credentials: bool
    request_id: str | None
    """The caller's idempotency key, qualified by its principal; None when it gave none."""
    job_id: JobId


@dataclass(frozen=True, slots=True)
class WorkerConnected:
    """A life of the worker's process began for us."""

    revision: int
    at_s: float
    worker_id: WorkerId
    epoch: int


@dataclass(frozen=True, slots=True)
class FactsRead:
    """What the engine said of itself, with what was stated laid over it."""

    revision: int
    at_s: float
    worker_id: WorkerId
    facts: WorkerFacts
    ranks: tuple[Rank, ...]


@dataclass(frozen=True, slots=True)
class WorkerStatusChanged:
    """READY, NOT_READY, DRAINING or FAILED."""

    revision: int
    at_s: float
    worker_id: WorkerId
    status: WorkerStatus
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class ConditionChanged:
    """A claim about the worker became true or false, or its reason changed."""

    revision: int
    at_s: float
    worker_id: WorkerId
    type: str
    is_true: bool
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class DrainRequested:
    """The operator wants no new request there; the worker's generation rises."""

    revision: int
    at_s: float
    worker_id: WorkerId
    timeout_s: float | None
    """None = as long as it takes."""


@dataclass(frozen=True, slots=True)
class WorkerRemoved:
    """The tombstone: the id is never used again, the URL is free."""

    revision: int
    at_s: float
    worker_id: WorkerId
    reason: str
    """Why, for people: deleted, or registration failed and its record expired."""


@dataclass(frozen=True, slots=True)
class JobCreated:
    """A slow thing was asked for."""

    revision: int
    at_s: float
    job_id: JobId
    type: JobType
    worker_id: WorkerId
    steps: tuple[JobStep, ...]


@dataclass(frozen=True, slots=True)
class JobStarted:
    """The job left the queue."""

    revision: int
    at_s: float
    job_id: JobId


@dataclass(frozen=True, slots=True)
class JobStepChanged:
    """One step began, was tried again, or ended."""

    revision: int
    at_s: float
    job_id: JobId
    index: int
    step: JobStep


@dataclass(frozen=True, slots=True)
class JobEnded:
    """The job is SUCCEEDED, FAILED or CANCELLED for good."""

    revision: int
    at_s: float
    job_id: JobId
    state: JobState
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class JobForgotten:
    """An ended job's record expired."""

    revision: int
    at_s: float
    job_id: JobId


Event = (
    WorkerCreated
    | WorkerConnected
    | FactsRead
    | WorkerStatusChanged
    | ConditionChanged
    | DrainRequested
    | WorkerRemoved
    | JobCreated
    | JobStarted
    | JobStepChanged
    | JobEnded
    | JobForgotten
)

"""What happened to workers and jobs: the only way that state changes.

Every event has a store-wide `revision` (contiguous, from 1) and the wall time `at_s` at which it was decided. Replaying
all events in order gives the same registry; that is what a Store keeps and what watches will send.
"""

from __future__ import annotations

from dataclasses import dataclass

from tandem_router.model.adapters import LoadedAdapter
from tandem_router.model.failure import Failure
from tandem_router.model.ids import JobId, WorkerId
from tandem_router.model.job import JobState, JobStep, JobType
from tandem_router.model.spec import WorkerSpec
from tandem_router.model.worker import Condition, Drain, Rank, WorkerFacts, WorkerStatus

__all__ = [
    "AdaptersRead",
    "ConditionChanged",
    "DrainCompleted",
    "DrainLifted",
    "DrainRequested",
    "Event",
    "FactsRead",
    "JobAdjusted",
    "JobCancelRequested",
    "JobCreated",
    "JobEnded",
    "JobForgotten",
    "JobStarted",
    "JobStepChanged",
    "SpecChanged",
    "Wanted",
    "WorkerConnected",
    "WorkerCreated",
    "WorkerRemoved",
    "WorkerReplaced",
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
class AdaptersRead:
    """The engine holds other adapters than its facts said."""

    revision: int
    at_s: float
    worker_id: WorkerId
    adapters: tuple[LoadedAdapter, ...]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A spec that a job is to bring into effect; the worker serves under the old one until then."""

    spec: WorkerSpec
    has_credentials: bool
    job_id: JobId


@dataclass(frozen=True, slots=True)
class SpecChanged:
    """The operator wants the worker to be something else; its generation rises."""

    revision: int
    at_s: float
    worker_id: WorkerId
    spec: WorkerSpec
    """In effect from now on."""
    has_credentials: bool
    wanted: Wanted | None
    """What a job is to bring into effect; None = nothing."""


@dataclass(frozen=True, slots=True)
class WorkerReplaced:
    """The wanted spec is in effect, with all that was found under it; the generation rose when it was asked for."""

    revision: int
    at_s: float
    worker_id: WorkerId
    epoch: int
    spec: WorkerSpec
    has_credentials: bool
    facts: WorkerFacts
    ranks: tuple[Rank, ...]
    conditions: tuple[Condition, ...]
    """All that hold now but DRAINING; `changed_at_s` is ignored."""
    failure: Failure | None
    """None = it can serve; else why it is NOT_READY."""


@dataclass(frozen=True, slots=True)
class WorkerStatusChanged:
    """PENDING, READY, NOT_READY or FAILED; for the middle two, a worker with a wish to drain shows DRAINING."""

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
    drain: Drain
    is_removal: bool
    """For a delete, and not for its own sake."""


@dataclass(frozen=True, slots=True)
class DrainLifted:
    """The wish was taken back; the worker's generation rises."""

    revision: int
    at_s: float
    worker_id: WorkerId
    is_removal: bool
    """The delete's; an operator's drain stays."""


@dataclass(frozen=True, slots=True)
class DrainCompleted:
    """The last request on a draining worker has ended."""

    revision: int
    at_s: float
    worker_id: WorkerId


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
    worker_generation: int = 1
    deadline_at_s: float | None = None


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
    next_try_at_s: float | None = None
    """Set while the step waits for its next try."""


@dataclass(frozen=True, slots=True)
class JobAdjusted:
    """What the job carries out was changed in a way that it takes along."""

    revision: int
    at_s: float
    job_id: JobId
    worker_generation: int
    deadline_at_s: float | None


@dataclass(frozen=True, slots=True)
class JobCancelRequested:
    """Somebody wants the job to stop; it ends CANCELLED with this failure at its next safe point."""

    revision: int
    at_s: float
    job_id: JobId
    failure: Failure


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
    | AdaptersRead
    | WorkerStatusChanged
    | SpecChanged
    | WorkerReplaced
    | ConditionChanged
    | DrainRequested
    | DrainLifted
    | DrainCompleted
    | WorkerRemoved
    | JobCreated
    | JobStarted
    | JobStepChanged
    | JobAdjusted
    | JobCancelRequested
    | JobEnded
    | JobForgotten
)

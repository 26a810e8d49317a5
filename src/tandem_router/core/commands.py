"""What may be asked of the registry, and what it asks of the shell in return."""

from __future__ import annotations

from dataclasses import dataclass

from tandem_router.core.events import Event
from tandem_router.model.failure import Failure
from tandem_router.model.ids import JobId, WorkerId
from tandem_router.model.job import Job, JobState, StepState
from tandem_router.model.spec import WorkerSpec
from tandem_router.model.worker import Condition, Rank, Worker, WorkerFacts

__all__ = [
    "Activate",
    "BeginStep",
    "CancelJob",
    "CloseClient",
    "Command",
    "Connect",
    "CreateWorker",
    "DeleteWorker",
    "Directive",
    "EndJob",
    "EndStep",
    "Expire",
    "MarkNotReady",
    "MarkReady",
    "Outcome",
    "Proposal",
    "RecordFacts",
    "RefreshPairing",
    "SetConditions",
    "StartJob",
    "StartProbes",
    "SubmitJob",
]


@dataclass(frozen=True, slots=True)
class CreateWorker:
    """Reserve a URL and register what answers there. Ids are minted by the shell."""

    worker_id: WorkerId
    job_id: JobId
    spec: WorkerSpec
    has_credentials: bool
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class DeleteWorker:
    """Drain and forget a worker; one that is not registered yet is forgotten at once."""

    worker_id: WorkerId
    job_id: JobId
    drain_timeout_s: float | None
    """None = as long as it takes; 0 = do not wait."""
    force: bool = False
    """Forget now; legs in flight are lost."""


@dataclass(frozen=True, slots=True)
class StartJob:
    """The runner took the job."""

    job_id: JobId


@dataclass(frozen=True, slots=True)
class BeginStep:
    """A step is tried: for the first time, or again."""

    job_id: JobId
    step: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class EndStep:
    """A try of a step ended. RUNNING with a failure: it will be tried again."""

    job_id: JobId
    step: str
    state: StepState
    detail: str = ""
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class EndJob:
    """The job is over. A failed registration fails its worker; a removal that ended removes it."""

    job_id: JobId
    state: JobState
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Connect:
    """A connection stands: the worker's next epoch begins. Fenced by the epoch seen and by the job, if any."""

    worker_id: WorkerId
    seen_epoch: int
    job_id: JobId | None = None


@dataclass(frozen=True, slots=True)
class RecordFacts:
    """Facts of the present epoch, effective values."""

    worker_id: WorkerId
    epoch: int
    facts: WorkerFacts
    ranks: tuple[Rank, ...]
    conditions: tuple[Condition, ...] = ()
    """`changed_at_s` is ignored: the registry keeps the time of the change."""


@dataclass(frozen=True, slots=True)
class SetConditions:
    """Claims about the present epoch."""

    worker_id: WorkerId
    epoch: int
    conditions: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Activate:
    """Registration found everything: the worker is READY, or NOT_READY for the reason given."""

    worker_id: WorkerId
    job_id: JobId
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class MarkNotReady:
    """Health says no; ignored unless the worker is READY in this epoch."""

    worker_id: WorkerId
    epoch: int
    failure: Failure


@dataclass(frozen=True, slots=True)
class MarkReady:
    """Health says yes again; ignored unless the worker is NOT_READY in this epoch, or READY and this is a new life."""

    worker_id: WorkerId
    epoch: int
    facts: WorkerFacts
    ranks: tuple[Rank, ...]
    is_new_life: bool
    """The process is another one, or its connection broke: the epoch rises."""
    conditions: tuple[Condition, ...] = ()


@dataclass(frozen=True, slots=True)
class Expire:
    """Drop what has outlived its time. Every other command does so too, on entry."""


Command = (
    CreateWorker
    | DeleteWorker
    | StartJob
    | BeginStep
    | EndStep
    | EndJob
    | Connect
    | RecordFacts
    | SetConditions
    | Activate
    | MarkNotReady
    | MarkReady
    | Expire
)


@dataclass(frozen=True, slots=True)
class SubmitJob:
    """Queue the job behind the other jobs of its worker."""

    job_id: JobId


@dataclass(frozen=True, slots=True)
class CancelJob:
    """Stop carrying the job out; its record has already ended."""

    job_id: JobId


@dataclass(frozen=True, slots=True)
class CloseClient:
    """The worker is gone: stop its probes and close its connection."""

    worker_id: WorkerId


@dataclass(frozen=True, slots=True)
class StartProbes:
    """The worker is registered: watch its health from now on."""

    worker_id: WorkerId


@dataclass(frozen=True, slots=True)
class RefreshPairing:
    """Who is there has changed: look again at who fits whom."""


Directive = SubmitJob | CancelJob | CloseClient | StartProbes | RefreshPairing


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a command would do. Nothing has changed yet."""

    events: tuple[Event, ...] = ()
    directives: tuple[Directive, ...] = ()
    worker_id: WorkerId | None = None
    job_id: JobId | None = None
    """The resources that the answer is about."""
    is_stale: bool = False
    """The command came too late; there are no events."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command did, read after its events were applied."""

    worker: Worker | None
    """None when the command is not about a worker, or the worker is gone."""
    job: Job | None
    revision: int
    """Of the last event applied, store-wide."""
    is_stale: bool = False
    """The command came too late (job ended, epoch over, worker gone) and changed nothing."""

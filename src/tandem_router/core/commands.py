"""What may be asked of the registry, and what it asks of the shell in return."""

from __future__ import annotations

from dataclasses import dataclass

from tandem_router.core.events import Event
from tandem_router.model.adapters import LoadedAdapter
from tandem_router.model.failure import Failure
from tandem_router.model.ids import JobId, WorkerId
from tandem_router.model.job import Job, JobState, StepState
from tandem_router.model.spec import WorkerSpec
from tandem_router.model.spec_patch import SpecPatch
from tandem_router.model.worker import Condition, Rank, Worker, WorkerFacts

__all__ = [
    "Activate",
    "ActivateSuccessor",
    "BeginStep",
    "CancelJob",
    "CloseClient",
    "Command",
    "Connect",
    "CreateWorker",
    "DeleteWorker",
    "Directive",
    "DrainWorker",
    "EndJob",
    "EndStep",
    "Expire",
    "MarkNotReady",
    "MarkReady",
    "NoteStep",
    "Outcome",
    "Proposal",
    "RecordFacts",
    "RefreshPairing",
    "ReplaceWorker",
    "RequestCancel",
    "SetAdapters",
    "SetConditions",
    "SetRankHealth",
    "StartJob",
    "StartProbes",
    "SubmitJob",
    "UndrainWorker",
    "UpdateWorker",
    "WakeDrain",
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
    """None = the worker's default; math.inf = as long as it takes; 0 = do not wait."""
    force: bool = False
    """Forget now; legs in flight are lost."""
    expected_generation: int | None = None
    """Here and below: refuse unless the worker's generation is this one; None = any."""


@dataclass(frozen=True, slots=True)
class ReplaceWorker:
    """Put another spec in the place of the old one and register the worker anew."""

    worker_id: WorkerId
    job_id: JobId
    spec: WorkerSpec
    has_credentials: bool | None
    """Whether the worker has credentials afterwards; None = as before."""
    expected_generation: int | None = None


@dataclass(frozen=True, slots=True)
class UpdateWorker:
    """Change some fields of the spec, at once where nothing has to be dialled for them."""

    worker_id: WorkerId
    job_id: JobId
    patch: SpecPatch
    has_credentials: bool | None
    """As for ReplaceWorker; credentials that change have to be tried."""
    expected_generation: int | None = None


@dataclass(frozen=True, slots=True)
class DrainWorker:
    """Take a worker out of routing and wait for its legs to end."""

    worker_id: WorkerId
    job_id: JobId
    timeout_s: float | None
    """Until the rest is aborted; None = never."""
    reason: str = ""
    expected_generation: int | None = None


@dataclass(frozen=True, slots=True)
class UndrainWorker:
    """Take the wish to drain back."""

    worker_id: WorkerId
    expected_generation: int | None = None


@dataclass(frozen=True, slots=True)
class RequestCancel:
    """Ask a job to stop."""

    job_id: JobId
    reason: str = ""


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
    retry_in_s: float | None = None
    """Until the next try, where there is one."""


@dataclass(frozen=True, slots=True)
class NoteStep:
    """How far a running step has come."""

    job_id: JobId
    step: str
    detail: str


@dataclass(frozen=True, slots=True)
class EndJob:
    """The job is over. A failed registration fails its worker; a removal that ended well removes it."""

    job_id: JobId
    state: JobState
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Connect:
    """A connection stands: the worker's next epoch begins. Fenced by the epoch seen and by the job."""

    worker_id: WorkerId
    seen_epoch: int
    job_id: JobId


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
class SetRankHealth:
    """What legs say of one rank of the present epoch; ignored where no healthy rank would be left."""

    worker_id: WorkerId
    epoch: int
    dp_rank: int
    failure: Failure | None
    """What took it out; None = it is tried again."""


@dataclass(frozen=True, slots=True)
class SetAdapters:
    """The adapters that the present epoch's engine holds, read again."""

    worker_id: WorkerId
    epoch: int
    adapters: tuple[LoadedAdapter, ...]


@dataclass(frozen=True, slots=True)
class Activate:
    """Registration found everything: the worker is READY, or NOT_READY for the reason given."""

    worker_id: WorkerId
    job_id: JobId
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class ActivateSuccessor:
    """A wanted spec was tried and found good: it takes the old one's place, all at once, as the next epoch."""

    worker_id: WorkerId
    job_id: JobId
    seen_epoch: int
    facts: WorkerFacts
    ranks: tuple[Rank, ...]
    conditions: tuple[Condition, ...]
    failure: Failure | None = None
    """None = READY; else why it is NOT_READY."""


@dataclass(frozen=True, slots=True)
class MarkNotReady:
    """Health says no; ignored unless the worker is READY (or drains) in this epoch."""

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
    | ReplaceWorker
    | UpdateWorker
    | DrainWorker
    | UndrainWorker
    | DeleteWorker
    | RequestCancel
    | StartJob
    | BeginStep
    | NoteStep
    | EndStep
    | EndJob
    | Connect
    | RecordFacts
    | SetConditions
    | SetAdapters
    | SetRankHealth
    | Activate
    | ActivateSuccessor
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
    """Stop carrying the job out; its record has ended, or ends when the work has stopped."""

    job_id: JobId


@dataclass(frozen=True, slots=True)
class CloseClient:
    """The worker is gone, or failed: stop its probes and close its connection."""

    worker_id: WorkerId
    is_gone: bool = True
    """Forget its credentials too; a FAILED worker may be replaced and keeps them."""


@dataclass(frozen=True, slots=True)
class StartProbes:
    """The worker is registered: watch its health from now on."""

    worker_id: WorkerId


@dataclass(frozen=True, slots=True)
class WakeDrain:
    """The worker's drain has another deadline now."""

    worker_id: WorkerId


@dataclass(frozen=True, slots=True)
class RefreshPairing:
    """The worker came, left or changed: look again at whom it fits."""

    worker_id: WorkerId


Directive = SubmitJob | CancelJob | CloseClient | StartProbes | WakeDrain | RefreshPairing


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

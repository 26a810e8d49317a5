"""A job: one slow thing done to one worker, with steps that a person can follow."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from tandem_router.model.failure import Failure
from tandem_router.model.ids import JobId, WorkerId

__all__ = ["Job", "JobState", "JobStep", "JobType", "StepState"]


class JobType(enum.StrEnum):
    """What a job does."""

    REGISTER_WORKER = "REGISTER_WORKER"
    REPLACE_WORKER = "REPLACE_WORKER"
    UPDATE_WORKER = "UPDATE_WORKER"
    DRAIN_WORKER = "DRAIN_WORKER"
    REMOVE_WORKER = "REMOVE_WORKER"

    @property
    def registers(self) -> bool:
        """Whether it makes a worker reachable: a registration, or one anew for a changed spec."""
        return self in (JobType.REGISTER_WORKER, JobType.REPLACE_WORKER, JobType.UPDATE_WORKER)


class JobState(enum.StrEnum):
    """PENDING -> RUNNING -> SUCCEEDED | FAILED | CANCELLED; the last three are final."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def is_final(self) -> bool:
        """Whether the job has ended."""
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


class StepState(enum.StrEnum):
    """States of one step of a job."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    SKIPPED = "SKIPPED"


@dataclass(frozen=True, slots=True)
class JobStep:
    """One step; times are wall clock seconds since the epoch, None while not reached."""

    name: str
    """connect, detect_runtime, read_facts, check_pairing, probe_bootstrap, load_tokenizer, activate, drain, remove."""
    state: StepState = StepState.PENDING
    attempts: int = 0
    detail: str = ""
    """What was found or is being waited for, one line."""
    failure: Failure | None = None
    started_at_s: float | None = None
    ended_at_s: float | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """One slow thing; keyed by its own id, never by a URL."""

    id: JobId
    type: JobType
    worker_id: WorkerId
    state: JobState
    steps: tuple[JobStep, ...]
    revision: int
    created_at_s: float
    started_at_s: float | None = None
    ended_at_s: float | None = None
    failure: Failure | None = None
    worker_generation: int = 1
    """Of its worker: the job carries this one out and has no effect on a later one."""
    deadline_at_s: float | None = None
    """Wall clock; when it stops waiting. None = never."""
    next_try_at_s: float | None = None
    """Wall clock; when the running step is tried again, while it waits for that."""
    cancel: Failure | None = None
    """Somebody asked it to stop; what its failure will be."""

"""Jobs: their states, their steps, and the book of those that run and those that ended lately.

    PENDING --START--> RUNNING --SUCCEED--> SUCCEEDED
       |                  |-----FAIL------> FAILED
       |--FAIL, CANCEL--> `-----CANCEL----> CANCELLED

A job is keyed by its own id: a rival keyed by URL and lost the registration's error when a removal followed.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import replace

from tandem_router.core.events import (
    JobAdjusted,
    JobCancelRequested,
    JobCreated,
    JobEnded,
    JobForgotten,
    JobStarted,
    JobStepChanged,
)
from tandem_router.model.failure import Failure
from tandem_router.model.ids import JobId, WorkerId
from tandem_router.model.job import Job, JobState, JobStep, JobType, StepState

__all__ = ["STEPS", "TRANSITIONS", "JobBook", "JobEvent", "JobInput", "begun", "ended", "noted", "steps_of"]


class JobInput(enum.StrEnum):
    """What can happen to a job."""

    START = "START"
    SUCCEED = "SUCCEED"
    FAIL = "FAIL"
    CANCEL = "CANCEL"


TRANSITIONS: Mapping[tuple[JobState, JobInput], JobState] = {
    (JobState.PENDING, JobInput.START): JobState.RUNNING,
    (JobState.PENDING, JobInput.FAIL): JobState.FAILED,
    (JobState.PENDING, JobInput.CANCEL): JobState.CANCELLED,
    (JobState.RUNNING, JobInput.SUCCEED): JobState.SUCCEEDED,
    (JobState.RUNNING, JobInput.FAIL): JobState.FAILED,
    (JobState.RUNNING, JobInput.CANCEL): JobState.CANCELLED,
}
"""Every pair that is absent is refused: the job stays as it is and the command is stale."""

_REGISTERING = (
    "connect",
    "detect_runtime",
    "read_facts",
    "check_pairing",
    "probe_bootstrap",
    "load_tokenizer",
    "activate",
)

STEPS: Mapping[JobType, tuple[str, ...]] = {
    JobType.REGISTER_WORKER: _REGISTERING,
    JobType.REPLACE_WORKER: _REGISTERING,
    JobType.UPDATE_WORKER: _REGISTERING,
    JobType.DRAIN_WORKER: ("drain",),
    JobType.REMOVE_WORKER: ("drain", "remove"),
}
"""Step names in order."""

JobEvent = JobCreated | JobStarted | JobStepChanged | JobAdjusted | JobCancelRequested | JobEnded | JobForgotten


def steps_of(job_type: JobType) -> tuple[JobStep, ...]:
    """The steps of a fresh job, all PENDING."""
    return tuple(JobStep(name) for name in STEPS[job_type])


def begun(step: JobStep, now_s: float, detail: str) -> JobStep:
    """The step with one more try running; the first try sets its start."""
    started_at_s = now_s if step.started_at_s is None else step.started_at_s
    return replace(
        step,
        state=StepState.RUNNING,
        attempts=step.attempts + 1,
        detail=detail or step.detail,
        started_at_s=started_at_s,
    )


def noted(step: JobStep, detail: str) -> JobStep:
    """The step with what is being waited for now; one that is not being tried stays as it is."""
    return replace(step, detail=detail) if step.state is StepState.RUNNING else step


def ended(step: JobStep, now_s: float, state: StepState, detail: str, failure: Failure | None) -> JobStep:
    """The step after a try: RUNNING keeps the failure for readers and waits for the next try, all else is final."""
    is_final = state is not StepState.RUNNING
    return replace(
        step,
        state=state,
        detail=detail or step.detail,
        failure=failure,
        started_at_s=step.started_at_s if step.started_at_s is not None else now_s,
        ended_at_s=now_s if is_final else None,
    )


class JobBook:
    """Records of jobs by id, in the order of asking. Changed by events only."""

    def __init__(self) -> None:
        self._jobs: dict[JobId, Job] = {}
        self._ended: dict[JobId, float] = {}
        self._open: dict[WorkerId, dict[JobId, None]] = {}
        self._open_count = 0

    def get(self, job_id: JobId) -> Job | None:
        """The record, or None when there is none (any more)."""
        return self._jobs.get(job_id)

    def all(self) -> tuple[Job, ...]:
        """Every record, oldest first."""
        return tuple(self._jobs.values())

    @property
    def open_count(self) -> int:
        """Jobs that have not ended."""
        return self._open_count

    def open_of(self, worker_id: WorkerId) -> tuple[Job, ...]:
        """The jobs of a worker that have not ended, in the order of asking, which is the order of their turns."""
        return tuple(self._jobs[job_id] for job_id in self._open.get(worker_id, ()))

    def expired(self, before_s: float) -> tuple[JobId, ...]:
        """Jobs that ended at or before `before_s`, in the order in which they ended."""
        found = []
        for job_id, ended_at_s in self._ended.items():
            if ended_at_s > before_s:
                break
            found.append(job_id)
        return tuple(found)

    def first_end_s(self) -> float | None:
        """When the job that ended longest ago ended; None when no ended job is kept."""
        return next(iter(self._ended.values()), None)

    def apply(self, event: JobEvent) -> None:
        """Take one event in. Events were checked when proposed; one that does not fit is a fault of ours (KeyError)."""
        match event:
            case JobCreated():
                self._jobs[event.job_id] = Job(
                    id=event.job_id,
                    type=event.type,
                    worker_id=event.worker_id,
                    state=JobState.PENDING,
                    steps=event.steps,
                    revision=event.revision,
                    created_at_s=event.at_s,
                    worker_generation=event.worker_generation,
                    deadline_at_s=event.deadline_at_s,
                )
                self._open.setdefault(event.worker_id, {})[event.job_id] = None
                self._open_count += 1
            case JobStarted():
                job = self._jobs[event.job_id]
                self._jobs[job.id] = replace(
                    job, state=JobState.RUNNING, started_at_s=event.at_s, revision=event.revision
                )
            case JobStepChanged():
                job = self._jobs[event.job_id]
                steps = (*job.steps[: event.index], event.step, *job.steps[event.index + 1 :])
                self._jobs[job.id] = replace(
                    job, steps=steps, next_try_at_s=event.next_try_at_s, revision=event.revision
                )
            case JobAdjusted():
                self._jobs[event.job_id] = replace(
                    self._jobs[event.job_id],
                    worker_generation=event.worker_generation,
                    deadline_at_s=event.deadline_at_s,
                    revision=event.revision,
                )
            case JobCancelRequested():
                self._jobs[event.job_id] = replace(
                    self._jobs[event.job_id], cancel=event.failure, revision=event.revision
                )
            case JobEnded():
                job = self._jobs[event.job_id]
                self._jobs[job.id] = replace(
                    job,
                    state=event.state,
                    failure=event.failure,
                    ended_at_s=event.at_s,
                    steps=tuple(_closed(step, event) for step in job.steps),
                    next_try_at_s=None,
                    revision=event.revision,
                )
                self._ended[job.id] = event.at_s
                self._close(job)
            case JobForgotten():
                del self._jobs[event.job_id]
                del self._ended[event.job_id]

    def _close(self, job: Job) -> None:
        others = self._open[job.worker_id]
        del others[job.id]
        if not others:
            del self._open[job.worker_id]
        self._open_count -= 1


def _closed(step: JobStep, event: JobEnded) -> JobStep:
    """No step of an ended job is left RUNNING or PENDING."""
    if step.state is StepState.RUNNING:
        state = StepState.FAILED if event.state is JobState.FAILED else StepState.SKIPPED
        return replace(step, state=state, failure=step.failure or event.failure, ended_at_s=event.at_s)
    if step.state is StepState.PENDING:
        return replace(step, state=StepState.SKIPPED)
    return step

"""How jobs are shown."""

from __future__ import annotations

import sys

from tandem.v1 import job_pb2
from tandem_router.cli.progress import step_line
from tandem_router.cli.text import STATE_ROOM, UUID_ROOM, Column, Table, one_line, pairs, printable
from tandem_router.cli.words import kind, since, state, took

__all__ = ["JOBS", "job_text"]

_QUIET = (job_pb2.STEP_STATE_PENDING, job_pb2.STEP_STATE_SUCCEEDED, job_pb2.STEP_STATE_SKIPPED)


def _step(job: job_pb2.Job) -> str:
    """The step that a job is at, or that it failed with."""
    return next((step.name for step in job.steps if step.state not in _QUIET), "")


def _tries(job: job_pb2.Job) -> str:
    return next((str(step.attempts) for step in job.steps if step.state not in _QUIET), "")


JOBS: Table[job_pb2.Job] = Table(
    (
        Column("ID", lambda job: job.id, room=UUID_ROOM),
        Column("TYPE", lambda job: kind(job_pb2.JobType, job.type)),
        Column("STATE", lambda job: state(job_pb2.JobState, job.state), is_state=True, room=STATE_ROOM),
        Column("STEP", _step),
        Column("TRIES", _tries),
        Column("AGE", lambda job: since(job, "create_time")),
        Column("WORKER", lambda job: job.worker_id),
        Column("TOOK", lambda job: took(job.start_time, job.end_time), is_wide=True),
        Column("GENERATION", lambda job: str(job.worker_generation), is_wide=True),
        Column("REASON", lambda job: job.failure.reason, is_wide=True),
        Column("MESSAGE", lambda job: job.failure.message, is_wide=True),
    )
)


def job_text(job: job_pb2.Job) -> str:
    """A job, its steps under it."""
    lines = pairs(
        (
            ("job", job.id),
            ("type", kind(job_pb2.JobType, job.type)),
            ("state", state(job_pb2.JobState, job.state)),
            ("worker", job.worker_id),
            ("cancel", "requested" if job.cancel_requested else ""),
            ("asked", f"{since(job, 'create_time')} ago" if job.HasField("create_time") else ""),
            ("took", took(job.start_time, job.end_time)),
            ("reason", f"{job.failure.reason}: {job.failure.message}" if job.HasField("failure") else ""),
        ),
        sys.stdout,
    )
    lines += [f"  {printable(one_line(step_line(step)), sys.stdout)}" for step in job.steps]
    return "\n".join(lines)

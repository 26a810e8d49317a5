"""Job to protobuf."""

from __future__ import annotations

from tandem.v1 import job_pb2 as pb
from tandem_router.model.job import Job, JobStep
from tandem_router.wire.scalars import failure_pb, timestamp_pb

__all__ = ["job_pb"]


def job_pb(job: Job) -> pb.Job:
    """The message of a job, all steps included."""
    return pb.Job(
        id=job.id,
        type=pb.JobType.Value(f"JOB_TYPE_{job.type.value}"),
        worker_id=job.worker_id,
        state=pb.JobState.Value(f"JOB_STATE_{job.state.value}"),
        steps=[_step_pb(step) for step in job.steps],
        failure=None if job.failure is None else failure_pb(job.failure),
        worker_generation=job.worker_generation,
        cancel_requested=job.cancel is not None and not job.state.is_final,
        next_try_time=None if job.next_try_at_s is None else timestamp_pb(job.next_try_at_s),
        revision=job.revision,
        create_time=timestamp_pb(job.created_at_s),
        start_time=None if job.started_at_s is None else timestamp_pb(job.started_at_s),
        end_time=None if job.ended_at_s is None else timestamp_pb(job.ended_at_s),
        deadline=None if job.deadline_at_s is None else timestamp_pb(job.deadline_at_s),
    )


def _step_pb(step: JobStep) -> pb.JobStep:
    return pb.JobStep(
        name=step.name,
        state=pb.StepState.Value(f"STEP_STATE_{step.state.value}"),
        attempts=step.attempts,
        detail=step.detail,
        failure=None if step.failure is None else failure_pb(step.failure),
        start_time=None if step.started_at_s is None else timestamp_pb(step.started_at_s),
        end_time=None if step.ended_at_s is None else timestamp_pb(step.ended_at_s),
    )

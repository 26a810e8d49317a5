"""`tandem jobs`: shows jobs."""

from __future__ import annotations

from typing import Annotated

import typer
from google.protobuf import json_format

from tandem.v1 import job_pb2, job_service_pb2, job_service_pb2_grpc
from tandem_router.cli.console import Admin, channel

__all__ = ["app", "job_text", "step_line"]

app = typer.Typer(help="Show jobs.", no_args_is_help=True)


@app.callback()
def jobs() -> None:
    """Show jobs."""


@app.command()
def get(
    job_id: str,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    admin: Admin = "127.0.0.1:50052",
) -> None:
    """Show one job and its steps."""
    with channel(admin) as opened:
        stub = job_service_pb2_grpc.JobServiceStub(opened)
        job = stub.GetJob(job_service_pb2.GetJobRequest(job_id=job_id)).job
    print(json_format.MessageToJson(job) if as_json else job_text(job))


def job_text(job: job_pb2.Job) -> str:
    """A job, its steps under it."""
    kind = job_pb2.JobType.Name(job.type).removeprefix("JOB_TYPE_").lower().replace("_", " ")
    state = job_pb2.JobState.Name(job.state).removeprefix("JOB_STATE_")
    lines = [f"{job.id}  {kind}  {state}  worker {job.worker_id}"]
    lines += [f"  {step_line(step)}" for step in job.steps]
    if job.HasField("failure"):
        lines.append(f"  {job.failure.reason}: {job.failure.message}")
    return "\n".join(lines)


def step_line(step: job_pb2.JobStep) -> str:
    """A step, its state, its tries when there was more than one, and what was found."""
    state = job_pb2.StepState.Name(step.state).removeprefix("STEP_STATE_").lower()
    tries = f" after {step.attempts} tries" if step.attempts > 1 else ""
    detail = f": {step.detail}" if step.detail else ""
    failure = f" ({step.failure.reason}: {step.failure.message})" if step.HasField("failure") else ""
    return f"{step.name} {state}{tries}{detail}{failure}"

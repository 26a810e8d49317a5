"""`tandem jobs`: shows and stops the slow things."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from tandem.v1 import job_pb2, job_service_pb2, job_service_pb2_grpc
from tandem_router.cli.console import DEFAULT_ADMIN, FAILED, Admin, Timeout, call, operators
from tandem_router.cli.job_text import JOBS, job_text
from tandem_router.cli.listing import JobId, PageSize, every_page, find_job, find_worker
from tandem_router.cli.output import Format, Output, show, show_id, show_table
from tandem_router.cli.progress import Steps, states, wait_for_job
from tandem_router.cli.text import example
from tandem_router.cli.watching import StopAfterSynced, Watch, poll
from tandem_router.cli.words import JobStateWord, JobTypeWord, numbers, one_of

__all__ = ["app"]

app = typer.Typer(help="Show and stop jobs, which carry out what is slow.", no_args_is_help=True)


States = Annotated[
    list[JobStateWord] | None,
    typer.Option("--state", metavar="STATE", case_sensitive=False, help=one_of(JobStateWord)),
]
Types = Annotated[list[JobTypeWord] | None, typer.Option("--type", metavar="TYPE", help=one_of(JobTypeWord))]


@app.command(epilog=example("tandem jobs get 3f2a"))
def get(job_id: JobId, output: Output = Format.TABLE, admin: Admin = DEFAULT_ADMIN) -> None:
    """Show one job and its steps."""
    with operators(admin) as opened:
        request = job_service_pb2.GetJobRequest(job_id=find_job(opened, job_id))
        job = call(job_service_pb2_grpc.JobServiceStub(opened).GetJob, request).job
    show(job, output, lambda: job_text(job))


@app.command("list", epilog=example("tandem jobs list --state FAILED -o wide"))
def list_(
    worker: Annotated[str, typer.Option(help="Only of this worker: its id, or the beginning.")] = "",
    state: States = None,
    type_: Types = None,
    watch_: Watch = False,
    output: Output = Format.TABLE,
    page_size: PageSize = 0,
    admin: Admin = DEFAULT_ADMIN,
) -> None:
    """Show the jobs, newest first.

    Ended ones are kept for an hour.
    """
    with operators(admin) as opened:
        stub = job_service_pb2_grpc.JobServiceStub(opened)
        request = job_service_pb2.ListJobsRequest(
            page_size=page_size,
            worker_id=find_worker(opened, worker) if worker else "",
            states=numbers(job_pb2.JobState, state),
            types=numbers(job_pb2.JobType, type_),
        )
        if watch_:
            poll(lambda: every_page(stub.ListJobs, request).jobs, JOBS, output)
        answer = every_page(stub.ListJobs, request)
    show_table(answer, answer.jobs, JOBS, output)


@app.command(epilog=example("tandem jobs watch 3f2a"))
def watch(
    job_id: JobId,
    output: Output = Format.TABLE,
    timeout_s: Timeout = None,
    stop_after_synced: StopAfterSynced = False,
    admin: Admin = DEFAULT_ADMIN,
) -> None:
    """Follow a job to its end.

    Exit code 0 when it succeeded, 1 when it failed or was cancelled.
    """
    with operators(admin) as opened:
        found = find_job(opened, job_id)
        if stop_after_synced:
            _once(job_service_pb2_grpc.JobServiceStub(opened), found, output)
            return
        if output.is_for_people:
            if not wait_for_job(opened, found, timeout_s, steps=Steps(sys.stdout), admin=admin):
                raise typer.Exit(FAILED)
            return
        job = job_pb2.Job()
        for job in states(opened, found, timeout_s):
            show(job, output, str, stream=True)
    if job.state != job_pb2.JOB_STATE_SUCCEEDED:
        raise typer.Exit(FAILED)


def _once(stub: job_service_pb2_grpc.JobServiceStub, job_id: str, output: Format) -> None:
    for answer in stub.WatchJob(job_service_pb2.WatchJobRequest(job_id=job_id, stop_after_synced=True)):
        job = answer.job
        show(job, output, lambda job=job: job_text(job), stream=True)  # type: ignore[misc]


@app.command(epilog=example("tandem jobs cancel 3f2a --reason 'wrong port'"))
def cancel(
    job_id: JobId,
    reason: Annotated[str, typer.Option(help="Why, for the job's message.")] = "",
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Until the job has stopped.")] = False,
    timeout_s: Timeout = 60.0,
    output: Output = Format.TABLE,
    admin: Admin = DEFAULT_ADMIN,
) -> None:
    """Ask a job to stop and print its id.

    What was done is undone where it can be.
    """
    with operators(admin) as opened:
        request = job_service_pb2.CancelJobRequest(job_id=find_job(opened, job_id), reason=reason)
        answer = call(job_service_pb2_grpc.JobServiceStub(opened).CancelJob, request)
        show_id(answer, output, answer.job.id)
        if wait:
            for _ in states(opened, answer.job.id, timeout_s):
                pass  # any end is what was asked for: it may have succeeded before the wish came

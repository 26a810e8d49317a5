"""`tandem workers`: registers, shows and forgets workers."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated

import grpc
import typer
from google.protobuf import json_format

from tandem.v1 import (
    job_pb2,
    job_service_pb2,
    job_service_pb2_grpc,
    worker_pb2,
    worker_service_pb2,
    worker_service_pb2_grpc,
    worker_spec_pb2,
)
from tandem_router.cli.console import FAILED, Admin, channel, complain, styled, table
from tandem_router.cli.jobs import step_line

__all__ = ["app", "register_all", "wait_for_job", "workers_table"]

app = typer.Typer(help="Register, show and forget workers.", no_args_is_help=True)

DEFAULT_ADMIN = "127.0.0.1:50052"
_POLL_S = 0.1


class Type(StrEnum):
    """What a worker is for."""

    PREFILL = "prefill"
    DECODE = "decode"
    REGULAR = "regular"


class Runtime(StrEnum):
    """Which engine it runs."""

    SGLANG = "sglang"
    VLLM = "vllm"


class Format(StrEnum):
    """How to print."""

    TABLE = "table"
    JSON = "json"


@app.command()
def add(
    url: Annotated[str, typer.Argument(help="grpc://host:port")],
    kind: Annotated[Type | None, typer.Option("--type", help="Default: what the worker says.")] = None,
    runtime: Annotated[Runtime | None, typer.Option(help="Default: detected.")] = None,
    bootstrap_port: Annotated[int | None, typer.Option(min=1, max=65535, help="Default: what the worker says.")] = None,
    label: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Until the registration has ended.")] = False,
    timeout_s: Annotated[float, typer.Option("--timeout", min=0, help="Seconds to wait at most.")] = 60.0,
    admin: Admin = DEFAULT_ADMIN,
) -> None:
    """Register a worker and print its id."""
    spec = worker_spec_pb2.WorkerSpec(url=url, bootstrap_port=bootstrap_port)
    if kind is not None:
        spec.worker_type = worker_spec_pb2.WorkerType.Value(f"WORKER_TYPE_{kind.name}")
    if runtime is not None:
        spec.runtime_type = worker_spec_pb2.RuntimeType.Value(f"RUNTIME_TYPE_{runtime.name}")
    for one in label or []:
        key, equals, value = one.partition("=")
        if not equals:
            raise typer.BadParameter(f"{one!r} is not KEY=VALUE", param_hint="--label")
        spec.labels[key] = value
    with channel(admin) as opened:
        stub = worker_service_pb2_grpc.WorkerServiceStub(opened)
        answer = stub.CreateWorker(worker_service_pb2.CreateWorkerRequest(spec=spec))
        print(answer.worker.id, flush=True)
        if wait and not wait_for_job(opened, answer.job.id, timeout_s):
            raise typer.Exit(FAILED)


@app.command("list")
def list_(
    output: Annotated[Format, typer.Option("--output", "-o")] = Format.TABLE, admin: Admin = DEFAULT_ADMIN
) -> None:
    """Show every worker."""
    with channel(admin) as opened:
        stub = worker_service_pb2_grpc.WorkerServiceStub(opened)
        workers: list[worker_pb2.Worker] = []
        request = worker_service_pb2.ListWorkersRequest(include_load=True)
        while True:
            answer = stub.ListWorkers(request)
            workers += answer.workers
            if not answer.next_page_token:
                break
            request.page_token = answer.next_page_token
    if output is Format.JSON:
        print(json_format.MessageToJson(worker_service_pb2.ListWorkersResponse(workers=workers)))
    else:
        print(workers_table(workers))


@app.command()
def get(worker_id: str, admin: Admin = DEFAULT_ADMIN) -> None:
    """Show one worker, as JSON."""
    with channel(admin) as opened:
        stub = worker_service_pb2_grpc.WorkerServiceStub(opened)
        answer = stub.GetWorker(worker_service_pb2.GetWorkerRequest(worker_id=worker_id, include_load=True))
    print(json_format.MessageToJson(answer.worker))


@app.command()
def delete(
    worker_id: str,
    drain_timeout_s: Annotated[
        float | None, typer.Option("--drain-timeout", min=0, help="Seconds; default: the worker's own.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Until it is gone.")] = False,
    timeout_s: Annotated[float, typer.Option("--timeout", min=0, help="Seconds to wait at most.")] = 60.0,
    admin: Admin = DEFAULT_ADMIN,
) -> None:
    """Drain and forget a worker; prints the job's id."""
    request = worker_service_pb2.DeleteWorkerRequest(worker_id=worker_id)
    if drain_timeout_s is not None:
        request.drain_timeout.FromNanoseconds(round(drain_timeout_s * 1e9))
    with channel(admin) as opened:
        answer = worker_service_pb2_grpc.WorkerServiceStub(opened).DeleteWorker(request)
        print(answer.job.id, flush=True)
        if wait and not wait_for_job(opened, answer.job.id, timeout_s):
            raise typer.Exit(FAILED)


def wait_for_job(opened: grpc.Channel, job_id: str, timeout_s: float, *, show_steps: bool = True) -> bool:
    """Show a job's steps on stderr as they change; True when it succeeded, else the complaint is printed."""
    stub = job_service_pb2_grpc.JobServiceStub(opened)
    until_s = time.monotonic() + timeout_s
    shown: set[str] = set()
    while True:
        job = stub.GetJob(job_service_pb2.GetJobRequest(job_id=job_id)).job
        for step in job.steps if show_steps else ():
            line = step_line(step)
            if step.state not in (job_pb2.STEP_STATE_PENDING, job_pb2.STEP_STATE_RUNNING) and line not in shown:
                shown.add(line)
                print(styled(line, "dim", sys.stderr), file=sys.stderr)
        if job.state == job_pb2.JOB_STATE_SUCCEEDED:
            return True
        if job.state in (job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED):
            complain(None, f"{job.failure.reason or 'CANCELLED'}: {job.failure.message or 'The job was cancelled.'}")
            return False
        if time.monotonic() >= until_s:
            complain(None, f"TIMEOUT: job {job_id} still runs after {timeout_s:g} s; it goes on.")
            return False
        time.sleep(_POLL_S)


def register_all(opened: grpc.Channel, workers: Sequence[tuple[str, str]], timeout_s: float = 60.0) -> None:
    """Register (url, type) workers, all at once, and wait for every job; raises typer.Exit when one fails."""
    stub = worker_service_pb2_grpc.WorkerServiceStub(opened)
    jobs = []
    for url, kind in workers:
        spec = worker_spec_pb2.WorkerSpec(
            url=url, worker_type=worker_spec_pb2.WorkerType.Value(f"WORKER_TYPE_{kind.upper()}")
        )
        jobs.append(stub.CreateWorker(worker_service_pb2.CreateWorkerRequest(spec=spec)).job)
    for job in jobs:
        if not wait_for_job(opened, job.id, timeout_s, show_steps=False):
            raise typer.Exit(FAILED)


def workers_table(workers: Sequence[worker_pb2.Worker]) -> str:
    """One line per worker."""
    rows = [
        (
            worker.id,
            _short(worker_spec_pb2.WorkerType.Name(worker.facts.worker_type or worker.spec.worker_type)),
            _short(worker_spec_pb2.RuntimeType.Name(worker.facts.runtime_type or worker.spec.runtime_type)),
            worker_pb2.WorkerStatus.Name(worker.status).removeprefix("WORKER_STATUS_"),
            ", ".join(card.id for card in (worker.spec.models or worker.facts.models)) or "-",
            str(sum(rank.in_flight for rank in worker.ranks)),
            worker.spec.url,
        )
        for worker in workers
    ]
    return table(("ID", "TYPE", "RUNTIME", "STATUS", "MODEL", "IN-FLIGHT", "URL"), rows)


def _short(name: str) -> str:
    word = name.removeprefix("WORKER_TYPE_").removeprefix("RUNTIME_TYPE_").lower()
    return "-" if word == "unspecified" else word

"""The verbs that change a worker. What takes time is a job: its steps are shown while one waits for it.

As with kubectl, `drain` and `delete` wait unless told not to, the others return at once unless told to wait. The id
that a script needs is all that goes to stdout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import grpc
import typer

from tandem.v1 import job_pb2, worker_service_pb2, worker_service_pb2_grpc, worker_spec_pb2
from tandem_router.cli.console import DEFAULT_ADMIN, FAILED, Admin, Timeout, call, operators
from tandem_router.cli.listing import WorkerId, find_worker
from tandem_router.cli.output import Format, Output, show_id
from tandem_router.cli.progress import wait_for_job, wait_or_fail
from tandem_router.cli.spec_flags import (
    ApiKeyFile,
    File,
    Generation,
    Labels,
    Sets,
    TlsCa,
    TlsCertificate,
    TlsKey,
    assign,
    credentials,
    key_values,
    read_spec,
    refuse_nothing,
)
from tandem_router.cli.words import RuntimeWord, TypeWord, duration, number

__all__ = ["add", "delete", "drain", "register_all", "replace", "undrain", "update"]

Kind = Annotated[TypeWord | None, typer.Option("--type", help="Default: what the worker says.")]
Runtime = Annotated[RuntimeWord | None, typer.Option(help="Default: detected.")]
BootstrapPort = Annotated[int | None, typer.Option(min=1, max=65535, help="Default: what the worker says.")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Until the job has ended; its steps go to stderr.")]
DrainTimeout = Annotated[
    float | None, typer.Option("--drain-timeout", min=0, help="Seconds after which what still runs is aborted.")
]


def add(
    url: Annotated[str, typer.Argument(help="grpc://host:port; may be left out where --file has it.")] = "",
    kind: Kind = None,
    runtime: Runtime = None,
    bootstrap_port: BootstrapPort = None,
    label: Labels = None,
    set_: Sets = None,
    file: File = "",
    api_key_file: ApiKeyFile = "",
    tls_ca: TlsCa = "",
    tls_certificate: TlsCertificate = "",
    tls_key: TlsKey = "",
    request_id: Annotated[str, typer.Option(help="The same one twice creates one worker.")] = "",
    wait: Wait = False,
    timeout_s: Timeout = 60.0,
    output: Output = Format.TABLE,
    admin: Admin = DEFAULT_ADMIN,
) -> None:
    """Register a worker and print its id."""
    spec = read_spec(file).spec
    if url:
        spec.url = url
    elif spec.WhichOneof("endpoint") is None:
        raise typer.BadParameter("give a URL, or a --file with one", param_hint="URL")
    _apply(spec, kind, runtime, bootstrap_port, label, set_)
    request = worker_service_pb2.CreateWorkerRequest(
        spec=spec, credentials=credentials(api_key_file, tls_ca, tls_certificate, tls_key), request_id=request_id
    )
    with operators(admin) as opened:
        answer = call(worker_service_pb2_grpc.WorkerServiceStub(opened).CreateWorker, request)
        show_id(answer, output, answer.worker.id)
        if wait and answer.HasField("job"):
            wait_or_fail(opened, answer.job.id, timeout_s, admin)


def replace(
    worker_id: WorkerId,
    file: File = "",
    kind: Kind = None,
    runtime: Runtime = None,
    bootstrap_port: BootstrapPort = None,
    label: Labels = None,
    set_: Sets = None,
    api_key_file: ApiKeyFile = "",
    tls_ca: TlsCa = "",
    tls_certificate: TlsCertificate = "",
    tls_key: TlsKey = "",
    generation: Generation = None,
    wait: Wait = False,
    timeout_s: Timeout = 60.0,
    output: Output = Format.TABLE,
    admin: Admin = DEFAULT_ADMIN,
) -> None:
    """Put a new spec in the place of the old one.

    What it leaves out goes back to its default. The endpoint can not change and may be left out. A file that
    `workers get` wrote also has the generation it was read at, and is refused if the worker has changed since.
    """
    document = read_spec(file)
    _apply(document.spec, kind, runtime, bootstrap_port, label, set_)
    with operators(admin) as opened:
        stub = worker_service_pb2_grpc.WorkerServiceStub(opened)
        found = find_worker(opened, worker_id)
        if document.spec.WhichOneof("endpoint") is None:
            old = call(stub.GetWorker, worker_service_pb2.GetWorkerRequest(worker_id=found)).worker.spec
            document.spec.url = old.url
            if old.HasField("agent"):
                document.spec.agent.CopyFrom(old.agent)
        request = worker_service_pb2.ReplaceWorkerRequest(
            worker_id=found,
            spec=document.spec,
            credentials=credentials(api_key_file, tls_ca, tls_certificate, tls_key),
            expected_generation=document.generation if generation is None else generation,
        )
        answer = call(stub.ReplaceWorker, request)
        show_id(answer, output, answer.worker.id)
        if wait and answer.HasField("job"):
            wait_or_fail(opened, answer.job.id, timeout_s, admin)


def update(
    worker_id: WorkerId,
    set_: Sets = None,
    label: Labels = None,
    remove_label: Annotated[list[str] | None, typer.Option(metavar="KEY", help="A label to delete.")] = None,
    api_key_file: ApiKeyFile = "",
    tls_ca: TlsCa = "",
    tls_certificate: TlsCertificate = "",
    tls_key: TlsKey = "",
    generation: Generation = None,
    wait: Wait = False,
    timeout_s: Timeout = 60.0,
    output: Output = Format.TABLE,
    admin: Admin = DEFAULT_ADMIN,
) -> None:
    """Change fields of a worker's spec.

    The others are kept and labels are merged. --set PATH=null puts a default back.
    """
    request = worker_service_pb2.UpdateWorkerRequest(
        remove_labels=remove_label or (),
        credentials=credentials(api_key_file, tls_ca, tls_certificate, tls_key),
        expected_generation=generation,
    )
    request.update_mask.paths.extend(assign(request.spec, set_ or ()))
    if label:
        request.spec.labels.update(key_values(label, "--label"))
        request.update_mask.paths.append("labels")
    refuse_nothing(request)
    with operators(admin) as opened:
        request.worker_id = find_worker(opened, worker_id)
        answer = call(worker_service_pb2_grpc.WorkerServiceStub(opened).UpdateWorker, request)
        show_id(answer, output, answer.worker.id)
        if wait and answer.HasField("job"):
            wait_or_fail(opened, answer.job.id, timeout_s, admin)


def drain(
    worker_id: WorkerId,
    drain_timeout_s: DrainTimeout = None,
    reason: Annotated[str, typer.Option(help="Why, for people.")] = "",
    generation: Generation = None,
    wait: Wait = True,
    timeout_s: Timeout = None,
    output: Output = Format.TABLE,
    admin: Admin = DEFAULT_ADMIN,
) -> None:
    """Take a worker out of routing and wait.

    Prints the job's id, then waits until the worker's requests have ended. It stays out until `tandem workers undrain`.
    Without --drain-timeout its requests may take as long as they take.
    """
    request = worker_service_pb2.DrainWorkerRequest(reason=reason, expected_generation=generation)
    if drain_timeout_s is not None:
        request.timeout.CopyFrom(duration(drain_timeout_s))
    with operators(admin) as opened:
        request.worker_id = find_worker(opened, worker_id)
        answer = call(worker_service_pb2_grpc.WorkerServiceStub(opened).DrainWorker, request)
        show_id(answer, output, answer.job.id)
        if wait:
            wait_or_fail(opened, answer.job.id, timeout_s, admin)


def undrain(
    worker_id: WorkerId,
    generation: Generation = None,
    output: Output = Format.TABLE,
    admin: Admin = DEFAULT_ADMIN,
) -> None:
    """Take a worker back and print its id."""
    with operators(admin) as opened:
        request = worker_service_pb2.UndrainWorkerRequest(
            worker_id=find_worker(opened, worker_id), expected_generation=generation
        )
        answer = call(worker_service_pb2_grpc.WorkerServiceStub(opened).UndrainWorker, request)
    show_id(answer, output, answer.worker.id)


def delete(
    worker_id: WorkerId,
    drain_timeout_s: DrainTimeout = None,
    generation: Generation = None,
    wait: Wait = True,
    timeout_s: Timeout = None,
    output: Output = Format.TABLE,
    admin: Admin = DEFAULT_ADMIN,
) -> None:
    """Drain a worker, then forget it.

    Prints the job's id, then waits until the worker is gone. Without --drain-timeout the worker's own
    health.drain_settle counts (5 s by default); 0 aborts at once.
    """
    request = worker_service_pb2.DeleteWorkerRequest(expected_generation=generation)
    if drain_timeout_s is not None:
        request.drain_timeout.CopyFrom(duration(drain_timeout_s))
    with operators(admin) as opened:
        request.worker_id = find_worker(opened, worker_id)
        answer = call(worker_service_pb2_grpc.WorkerServiceStub(opened).DeleteWorker, request)
        show_id(answer, output, answer.job.id)
        if wait:
            wait_or_fail(opened, answer.job.id, timeout_s, admin)


def register_all(opened: grpc.Channel, workers: Sequence[tuple[str, str]], timeout_s: float = 60.0) -> None:
    """Register (url, type) workers, all at once, and wait for every job; raises typer.Exit when one fails."""
    stub = worker_service_pb2_grpc.WorkerServiceStub(opened)
    jobs: list[job_pb2.Job] = []
    for url, kind in workers:
        spec = worker_spec_pb2.WorkerSpec(url=url, worker_type=number(worker_spec_pb2.WorkerType, TypeWord(kind)))
        jobs.append(call(stub.CreateWorker, worker_service_pb2.CreateWorkerRequest(spec=spec)).job)
    for job in jobs:
        if not wait_for_job(opened, job.id, timeout_s):
            raise typer.Exit(FAILED)


def _apply(
    spec: worker_spec_pb2.WorkerSpec,
    kind: TypeWord | None,
    runtime: RuntimeWord | None,
    bootstrap_port: int | None,
    labels: list[str] | None,
    settings: list[str] | None,
) -> None:
    if kind is not None:
        spec.worker_type = number(worker_spec_pb2.WorkerType, kind)
    if runtime is not None:
        spec.runtime_type = number(worker_spec_pb2.RuntimeType, runtime)
    if bootstrap_port is not None:
        spec.bootstrap_port = bootstrap_port
    spec.labels.update(key_values(labels, "--label"))
    assign(spec, settings or ())

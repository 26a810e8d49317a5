"""`tandem workers`: the reading half; the changing half is in `worker_changes`."""

from __future__ import annotations

from typing import Annotated

import typer

from tandem.v1 import worker_pb2, worker_service_pb2, worker_service_pb2_grpc, worker_spec_pb2
from tandem_router.cli.console import DEFAULT_ADMIN, Admin, call, operators
from tandem_router.cli.listing import PageSize, WorkerId, every_page, find_worker
from tandem_router.cli.output import Format, Output, show, show_table
from tandem_router.cli.spec_flags import key_values
from tandem_router.cli.text import example
from tandem_router.cli.watching import FromRevision, StopAfterSynced, Watch, follow, print_changes, print_events
from tandem_router.cli.words import RuntimeWord, StatusWord, TypeWord, duration, numbers, one_of
from tandem_router.cli.worker_changes import add, delete, drain, replace, undrain, update
from tandem_router.cli.worker_text import COUNTS, WORKERS, worker_text

__all__ = ["app"]

app = typer.Typer(help="Register, show, change, drain and forget workers.", no_args_is_help=True)

Model = Annotated[str, typer.Option(help="Only those that serve it, by id or alias.")]
Types = Annotated[list[TypeWord] | None, typer.Option("--type", metavar="TYPE", help=one_of(TypeWord))]
Statuses = Annotated[
    list[StatusWord] | None,
    typer.Option("--status", metavar="STATUS", case_sensitive=False, help=one_of(StatusWord)),
]
Runtimes = Annotated[list[RuntimeWord] | None, typer.Option("--runtime", metavar="RUNTIME", help=one_of(RuntimeWord))]
Labels = Annotated[list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="Only with all of these.")]


def _filter(
    model: str,
    types: list[TypeWord] | None,
    statuses: list[StatusWord] | None,
    runtimes: list[RuntimeWord] | None,
    labels: list[str] | None,
) -> worker_service_pb2.WorkerFilter:
    return worker_service_pb2.WorkerFilter(
        model=model,
        worker_types=numbers(worker_spec_pb2.WorkerType, types),
        statuses=numbers(worker_pb2.WorkerStatus, statuses),
        runtime_types=numbers(worker_spec_pb2.RuntimeType, runtimes),
        labels=key_values(labels, "--label"),
    )


@app.command("list", epilog=example("tandem workers list --type prefill --status READY -o wide"))
def list_(
    model: Model = "",
    type_: Types = None,
    status: Statuses = None,
    runtime: Runtimes = None,
    label: Labels = None,
    counts: Annotated[bool, typer.Option("--counts", help="Only how many there are, by type and status.")] = False,
    watch_: Watch = False,
    output: Output = Format.TABLE,
    page_size: PageSize = 0,
    admin: Admin = DEFAULT_ADMIN,
) -> None:
    """Show the workers, oldest first."""
    chosen = _filter(model, type_, status, runtime, label)
    with operators(admin) as opened:
        stub = worker_service_pb2_grpc.WorkerServiceStub(opened)
        if counts:
            answer = call(stub.ListWorkers, worker_service_pb2.ListWorkersRequest(page_size=1, filter=chosen))
            counted = worker_service_pb2.ListWorkersResponse(counts=answer.counts, revision=answer.revision)
            show_table(counted, counted.counts, COUNTS, output)
            return
        request = worker_service_pb2.ListWorkersRequest(page_size=page_size, filter=chosen, include_load=True)
        answer = every_page(stub.ListWorkers, request)
        if not watch_:
            show_table(answer, answer.workers, WORKERS, output)
            return
        after = worker_service_pb2.WatchWorkersRequest(filter=chosen, from_revision=answer.revision)
        print_changes(answer.workers, follow(stub.WatchWorkers, after), "worker", WORKERS, output)


@app.command(epilog=example("tandem workers get 5d1e -o yaml"))
def get(worker_id: WorkerId, output: Output = Format.TABLE, admin: Admin = DEFAULT_ADMIN) -> None:
    """Show one worker.

    What it is, why it is not ready, its ranks and its job.
    """
    with operators(admin) as opened:
        request = worker_service_pb2.GetWorkerRequest(worker_id=find_worker(opened, worker_id), include_load=True)
        worker = call(worker_service_pb2_grpc.WorkerServiceStub(opened).GetWorker, request).worker
    show(worker, output, lambda: worker_text(worker, wide=output is Format.WIDE))


@app.command(epilog=example("tandem workers watch --status READY --stop-after-synced -o json"))
def watch(
    model: Model = "",
    type_: Types = None,
    status: Statuses = None,
    runtime: Runtimes = None,
    label: Labels = None,
    from_revision: FromRevision = None,
    stop_after_synced: StopAfterSynced = False,
    progress_s: Annotated[
        float | None, typer.Option("--progress", min=1, help="Seconds of quiet after which the revision is told.")
    ] = None,
    output: Output = Format.TABLE,
    admin: Admin = DEFAULT_ADMIN,
) -> None:
    """Follow the workers.

    First what there is, then SYNCED, then every change with its revision. Ctrl-C ends it.
    """
    request = worker_service_pb2.WatchWorkersRequest(
        filter=_filter(model, type_, status, runtime, label),
        from_revision=from_revision,
        stop_after_synced=stop_after_synced,
        progress_interval=None if progress_s is None else duration(progress_s),
    )
    with operators(admin) as opened:
        stub = worker_service_pb2_grpc.WorkerServiceStub(opened)
        print_events(follow(stub.WatchWorkers, request), "worker", WORKERS, output)


app.command(epilog=example("tandem workers add grpc://10.0.0.5:30000 --type prefill --label zone=a --wait"))(add)
app.command(epilog=example("tandem workers update 5d1e --label zone=b --set health.timeout=2s"))(update)
app.command(
    epilog=example(
        "tandem workers get 5d1e -o yaml > worker.yaml",
        "$EDITOR worker.yaml",
        "tandem workers replace 5d1e -f worker.yaml",
    )
)(replace)
app.command(epilog=example("tandem workers drain 5d1e --reason 'new driver' --drain-timeout 300"))(drain)
app.command(epilog=example("tandem workers undrain 5d1e"))(undrain)
app.command(epilog=example("tandem workers delete 5d1e --drain-timeout 30"))(delete)

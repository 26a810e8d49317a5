"""`tandem adapters`: the adapters (LoRA) that engines hold beside their model."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from tandem.v1 import adapter_pb2, adapter_service_pb2, adapter_service_pb2_grpc
from tandem_router.cli.console import DEFAULT_ADMIN, Admin, call, operators
from tandem_router.cli.listing import PageSize, every_page, find_worker
from tandem_router.cli.output import Format, Output, show, show_table
from tandem_router.cli.selection import (
    Limit,
    SelectedModel,
    SelectedWorkers,
    call_within,
    required,
    selection,
    tell,
)
from tandem_router.cli.text import UUID_ROOM, Column, Table, example

__all__ = ["app"]

app = typer.Typer(help="Load, show and unload adapters (LoRA).", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The name that requests use.")]

ADAPTERS: Table[adapter_pb2.Adapter] = Table(
    (
        Column("NAME", lambda one: one.name),
        Column("WORKERS", lambda one: str(len(one.placements))),
        Column("PATH", lambda one: ", ".join(dict.fromkeys(place.path for place in one.placements if place.path))),
        Column("ON", lambda one: ",".join(place.worker_id[:8] for place in one.placements), is_wide=True),
    )
)
"""WORKERS is how many have it; a path for each place that it was loaded from."""

_PLACEMENTS: Table[adapter_pb2.AdapterPlacement] = Table(
    (
        Column("WORKER", lambda one: one.worker_id, room=UUID_ROOM),
        Column("PATH", lambda one: one.path),
        Column("PINNED", lambda one: "yes" if one.pinned else "no"),
        Column("ENGINE-ID", lambda one: one.engine_id),
    )
)


@app.command("list", epilog=example("tandem adapters list --model tiny -o wide"))
def list_(
    model: Annotated[str, typer.Option(help="Only those that a worker of this model has.")] = "",
    worker: Annotated[str, typer.Option(help="Only of this worker: its id, or the beginning.")] = "",
    output: Output = Format.TABLE,
    page_size: PageSize = 0,
    admin: Admin = DEFAULT_ADMIN,
) -> None:
    """Show what is loaded, by name, as the engines say."""
    with operators(admin) as opened:
        request = adapter_service_pb2.ListAdaptersRequest(
            model=model, worker_id=find_worker(opened, worker) if worker else "", page_size=page_size
        )
        answer = every_page(adapter_service_pb2_grpc.AdapterServiceStub(opened).ListAdapters, request)
    show_table(answer, answer.adapters, ADAPTERS, output)


@app.command(epilog=example("tandem adapters get german"))
def get(name: Name, output: Output = Format.TABLE, admin: Admin = DEFAULT_ADMIN) -> None:
    """Show one adapter and the workers that have it."""
    with operators(admin) as opened:
        request = adapter_service_pb2.GetAdapterRequest(name=name)
        found = call(adapter_service_pb2_grpc.AdapterServiceStub(opened).GetAdapter, request).adapter
    wide = output is Format.WIDE
    show(found, output, lambda: "\n".join(_PLACEMENTS.lines(found.placements, sys.stdout, wide=wide)))


@app.command(epilog=example("tandem adapters load german /adapters/german --model tiny"))
def load(
    name: Name,
    path: Annotated[str, typer.Argument(metavar="PATH", help="Where the engines find it, on their machines.")],
    pinned: Annotated[bool, typer.Option("--pinned", help="Keep it when an engine needs room for others.")] = False,
    worker: SelectedWorkers = None,
    model: SelectedModel = "",
    timeout_s: Limit = 60.0,
    output: Output = Format.TABLE,
    admin: Admin = DEFAULT_ADMIN,
) -> None:
    """Load an adapter into engines and wait.

    Where it is loaded already from the same path, nothing is done. Exit code 1 when it failed on a worker.
    """
    with operators(admin) as opened:
        request = adapter_service_pb2.LoadAdapterRequest(
            name=name, path=path, pinned=pinned, workers=required(selection(opened, worker, model))
        )
        stub = adapter_service_pb2_grpc.AdapterServiceStub(opened)
        answer = call_within(stub.LoadAdapter, request, timeout_s)
    tell(answer, output)


@app.command(epilog=example("tandem adapters unload german"))
def unload(
    name: Name,
    worker: SelectedWorkers = None,
    model: SelectedModel = "",
    timeout_s: Limit = 60.0,
    output: Output = Format.TABLE,
    admin: Admin = DEFAULT_ADMIN,
) -> None:
    """Take an adapter out of engines.

    Without --worker and --model: out of all that have it. Exit code 1 when it failed on a worker.
    """
    with operators(admin) as opened:
        request = adapter_service_pb2.UnloadAdapterRequest(name=name, workers=selection(opened, worker, model))
        stub = adapter_service_pb2_grpc.AdapterServiceStub(opened)
        answer = call_within(stub.UnloadAdapter, request, timeout_s)
    tell(answer, output)

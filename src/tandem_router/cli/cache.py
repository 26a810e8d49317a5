"""`tandem cache`: the prefix caches of engines."""

from __future__ import annotations

from typing import Annotated

import typer

from tandem.v1 import cache_service_pb2, cache_service_pb2_grpc
from tandem_router.cli.console import DEFAULT_ADMIN, Admin, operators
from tandem_router.cli.output import Format, Output
from tandem_router.cli.selection import (
    Limit,
    SelectedModel,
    SelectedWorkers,
    call_within,
    required,
    selection,
    tell,
)
from tandem_router.cli.text import example
from tandem_router.cli.words import duration

__all__ = ["app"]

app = typer.Typer(help="Empty the prefix caches of engines.", no_args_is_help=True)


@app.callback()
def root() -> None:
    """Empty the prefix caches of engines."""


@app.command(epilog=example("tandem cache flush --model tiny --wait-idle 30"))
def flush(
    worker: SelectedWorkers = None,
    model: SelectedModel = "",
    wait_idle_s: Annotated[
        float | None, typer.Option("--wait-idle", min=0, max=600, help="Seconds to wait for an engine to be idle.")
    ] = None,
    timeout_s: Limit = 60.0,
    output: Output = Format.TABLE,
    admin: Admin = DEFAULT_ADMIN,
) -> None:
    """Have engines forget the KV that no request uses.

    Some refuse while requests run; --wait-idle lets them wait first. Exit code 1 when it failed on a worker.
    """
    with operators(admin) as opened:
        request = cache_service_pb2.FlushCacheRequest(workers=required(selection(opened, worker, model)))
        if wait_idle_s is not None:
            request.wait_idle.CopyFrom(duration(wait_idle_s))
        stub = cache_service_pb2_grpc.CacheServiceStub(opened)
        answer = call_within(stub.FlushCache, request, timeout_s + (wait_idle_s or 0.0))
    tell(answer, output)

"""The workers that an operation is for, on the command line, and how it went on each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import grpc
import typer

from tandem.v1 import worker_selection_pb2
from tandem_router.cli.console import FAILED, Method, advise
from tandem_router.cli.listing import find_worker
from tandem_router.cli.output import Format, show_table
from tandem_router.cli.text import UUID_ROOM, Column, Table

__all__ = ["Limit", "SelectedModel", "SelectedWorkers", "call_within", "required", "selection", "tell"]

SelectedWorkers = Annotated[
    list[str] | None, typer.Option("--worker", metavar="WORKER", help="This worker, by id; may be repeated.")
]
SelectedModel = Annotated[str, typer.Option("--model", help="Every READY worker of this model, by id or alias.")]
Limit = Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds that engines have.")]

Outcome = worker_selection_pb2.WorkerOutcome

_OUTCOMES: Table[Outcome] = Table(
    (
        Column("WORKER", lambda one: one.worker_id, room=UUID_ROOM),
        Column("DONE", lambda one: "no" if one.HasField("failure") else "yes", is_state=True),
        Column("REASON", lambda one: one.failure.reason),
        Column("MESSAGE", lambda one: one.failure.message or one.message),
    )
)


def selection(
    opened: grpc.Channel, workers: Sequence[str] | None, model: str
) -> worker_selection_pb2.WorkerSelection | None:
    """What the two options say, with ids made whole; None where neither is given. Raises typer.BadParameter."""
    if workers and model:
        raise typer.BadParameter("--worker and --model exclude each other")
    if not workers and not model:
        return None
    ids = [find_worker(opened, worker) for worker in workers or ()]
    return worker_selection_pb2.WorkerSelection(worker_ids=ids, model=model)


def required(chosen: worker_selection_pb2.WorkerSelection | None) -> worker_selection_pb2.WorkerSelection:
    """The selection, where nobody is not everybody. Raises typer.BadParameter."""
    if chosen is None:
        raise typer.BadParameter("say which workers: --worker (may be repeated) or --model")
    return chosen


def call_within(method: Method[Any, Any], request: Any, timeout_s: float) -> Any:
    """As `console.call`, for what may take long. Raises grpc.RpcError."""
    return method(request, timeout=timeout_s)


def tell(answer: Any, output: Format) -> None:
    """Print how it went on each worker; exits 1 where it failed on one."""
    outcomes: Sequence[Outcome] = answer.outcomes
    show_table(answer, outcomes, _OUTCOMES, output)
    failures = [one.failure.reason for one in outcomes if one.HasField("failure")]
    for reason in dict.fromkeys(failures):
        advise(reason)
    if failures:
        raise typer.Exit(FAILED)

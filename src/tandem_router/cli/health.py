"""`tandem health`: what a probe sees."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tandem_router.cli.console import FAILED, call, channel
from tandem_router.cli.output import Format, Output, show
from tandem_router.cli.text import Column, Table
from tandem_router.cli.watching import Rows
from tandem_router.cli.words import HEALTH

__all__ = ["health"]

DEFAULT_HEALTH = "127.0.0.1:50053"
_pb: Any = health_pb2
"""The published stubs predate List."""


@dataclass(frozen=True, slots=True)
class _Serving:
    name: str
    status: int


_NAMES: Table[_Serving] = Table(
    (
        Column("NAME", lambda one: one.name or '""'),
        Column("STATUS", lambda one: HEALTH.get(one.status, str(one.status)), is_state=True),
    )
)


def health(
    name: Annotated[
        str | None, typer.Argument(help="liveness, readiness, model/ID, a service, or '' for the server. Default: all.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show every change of one name, until Ctrl-C.")] = False,
    output: Output = Format.TABLE,
    address: Annotated[
        str, typer.Option("--health", envvar="TANDEM_HEALTH_ADDRESS", help="Where probes are answered, host:port.")
    ] = DEFAULT_HEALTH,
) -> None:
    """Show what is serving, as grpc.health.v1 says it.

    Exit code 0 when the name (readiness, where all are shown) is SERVING, else 1.
    """
    with channel(address) as opened:
        stub: Any = health_pb2_grpc.HealthStub(opened)
        if watch:
            _watch(stub, name or "", output)
            return
        if name is None:
            answer = call(stub.List, _pb.HealthListRequest())
            serving = [_Serving(one, answer.statuses[one].status) for one in sorted(answer.statuses)]
            show(answer, output, lambda: _text(serving))
            status = answer.statuses["readiness"].status
        else:
            answer = call(stub.Check, health_pb2.HealthCheckRequest(service=name))
            status = answer.status
            show(answer, output, lambda: _text([_Serving(name, status)]))
    if status != health_pb2.HealthCheckResponse.SERVING:
        raise typer.Exit(FAILED)


def _watch(stub: Any, name: str, output: Format) -> None:
    rows = Rows(_NAMES, output)
    is_first = True
    for answer in stub.Watch(health_pb2.HealthCheckRequest(service=name)):
        if not output.is_for_people:
            show(answer, output, str, stream=True)
        elif is_first:
            rows.begin([_Serving(name, answer.status)])
        else:
            rows.add(_Serving(name, answer.status))
        is_first = False


def _text(serving: list[_Serving]) -> str:
    return "\n".join(_NAMES.lines(serving, sys.stdout, wide=False))

"""`tandem profile`: the engines' own profilers."""

from __future__ import annotations

from typing import Annotated

import typer

from tandem.v1 import profile_service_pb2, profile_service_pb2_grpc
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

__all__ = ["app"]

app = typer.Typer(help="Start and stop the engines' own profilers.", no_args_is_help=True)

_UINT32_MOST = 2**32 - 1
Steps = Annotated[int | None, typer.Option(min=0, max=_UINT32_MOST, help="Steps to profile. Default: until stopped.")]


@app.command(epilog=example("tandem profile start --worker 5d1e --output-dir /tmp/traces --num-steps 20"))
def start(
    worker: SelectedWorkers = None,
    model: SelectedModel = "",
    output_dir: Annotated[str, typer.Option(help="Folder for the traces, on the engine's machine.")] = "",
    start_step: Annotated[int | None, typer.Option(min=0, max=_UINT32_MOST, help="Step to start at.")] = None,
    num_steps: Steps = None,
    activity: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="What to record, as CPU or GPU; may be repeated.")
    ] = None,
    with_stack: Annotated[bool | None, typer.Option("--with-stack/--no-stack", help="Record call stacks.")] = None,
    record_shapes: Annotated[bool | None, typer.Option("--shapes/--no-shapes", help="Record tensor shapes.")] = None,
    by_stage: Annotated[bool, typer.Option("--by-stage", help="Separate prefill from decode steps.")] = False,
    timeout_s: Limit = 60.0,
    output: Output = Format.TABLE,
    admin: Admin = DEFAULT_ADMIN,
) -> None:
    """Start the profilers of engines.

    What is not said is the engine's own default. Exit code 1 when it failed on a worker.
    """
    with operators(admin) as opened:
        request = profile_service_pb2.StartProfileRequest(
            workers=required(selection(opened, worker, model)),
            output_dir=output_dir,
            start_step=start_step,
            num_steps=num_steps,
            activities=activity or (),
            with_stack=with_stack,
            record_shapes=record_shapes,
            by_stage=by_stage,
        )
        stub = profile_service_pb2_grpc.ProfileServiceStub(opened)
        answer = call_within(stub.StartProfile, request, timeout_s)
    tell(answer, output)


@app.command(epilog=example("tandem profile stop --worker 5d1e"))
def stop(
    worker: SelectedWorkers = None,
    model: SelectedModel = "",
    timeout_s: Limit = 600.0,
    output: Output = Format.TABLE,
    admin: Admin = DEFAULT_ADMIN,
) -> None:
    """Stop the profilers of engines and wait for traces.

    Writing them may take minutes. Exit code 1 when it failed on a worker.
    """
    with operators(admin) as opened:
        request = profile_service_pb2.StopProfileRequest(workers=required(selection(opened, worker, model)))
        stub = profile_service_pb2_grpc.ProfileServiceStub(opened)
        answer = call_within(stub.StopProfile, request, timeout_s)
    tell(answer, output)

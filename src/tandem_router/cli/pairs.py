"""`tandem pairs`: the prefill/decode pairs that live now, and pairs on loan."""

from __future__ import annotations

from typing import Annotated

import typer

from tandem.v1 import pair_pb2, pair_service_pb2, pair_service_pb2_grpc
from tandem_router.cli.console import DEFAULT_ADMIN, Admin, call, operators
from tandem_router.cli.listing import PageSize, PairId, every_page, find_pair, find_worker
from tandem_router.cli.output import Format, Output, show, show_id, show_table
from tandem_router.cli.pair_text import PAIRS, reservation_text
from tandem_router.cli.text import example
from tandem_router.cli.watching import FromRevision, StopAfterSynced, Watch, follow, print_changes, print_events
from tandem_router.cli.words import OutcomeWord, PairStateWord, duration, number, numbers, one_of

__all__ = ["app"]

app = typer.Typer(help="Show the prefill/decode pairs of this router, and borrow one.", no_args_is_help=True)

Model = Annotated[str, typer.Option(help="Only of this model's id.")]
Worker = Annotated[str, typer.Option(help="Only with a leg on this worker: its id, or the beginning.")]
States = Annotated[
    list[PairStateWord] | None,
    typer.Option("--state", metavar="STATE", case_sensitive=False, help=one_of(PairStateWord)),
]
Request = Annotated[str, typer.Option("--request", help="Only of this request id.")]


@app.command("list", epilog=example("tandem pairs list --model tiny --state DECODING -o wide"))
def list_(
    model: Model = "",
    worker: Worker = "",
    state: States = None,
    request_id: Request = "",
    watch_: Watch = False,
    output: Output = Format.TABLE,
    page_size: PageSize = 0,
    admin: Admin = DEFAULT_ADMIN,
) -> None:
    """Show the live pairs, oldest first.

    Requests that one worker serves alone are no pairs.
    """
    with operators(admin) as opened:
        stub = pair_service_pb2_grpc.PairServiceStub(opened)
        chosen = pair_service_pb2.PairFilter(
            model=model,
            worker_id=find_worker(opened, worker) if worker else "",
            states=numbers(pair_pb2.PairState, state),
            request_id=request_id,
        )
        request = pair_service_pb2.ListPairsRequest(page_size=page_size, filter=chosen)
        answer = every_page(stub.ListPairs, request)
        if not watch_:
            show_table(answer, answer.pairs, PAIRS, output)
            return
        after = pair_service_pb2.WatchPairsRequest(filter=chosen, from_revision=answer.revision)
        print_changes(answer.pairs, follow(stub.WatchPairs, after), "pair", PAIRS, output)


@app.command(epilog=example("tandem pairs watch --stop-after-synced -o json"))
def watch(
    model: Model = "",
    worker: Worker = "",
    state: States = None,
    request_id: Request = "",
    from_revision: FromRevision = None,
    stop_after_synced: StopAfterSynced = False,
    output: Output = Format.TABLE,
    admin: Admin = DEFAULT_ADMIN,
) -> None:
    """Follow the pairs.

    First what there is, then SYNCED, then every change with its revision. Ctrl-C ends it.
    """
    with operators(admin) as opened:
        chosen = pair_service_pb2.PairFilter(
            model=model,
            worker_id=find_worker(opened, worker) if worker else "",
            states=numbers(pair_pb2.PairState, state),
            request_id=request_id,
        )
        request = pair_service_pb2.WatchPairsRequest(
            filter=chosen, from_revision=from_revision, stop_after_synced=stop_after_synced
        )
        stub = pair_service_pb2_grpc.PairServiceStub(opened)
        print_events(follow(stub.WatchPairs, request), "pair", PAIRS, output)


@app.command(epilog=example("tandem pairs reserve --model tiny --prompt-tokens 1024 --ttl 60 -o json"))
def reserve(
    model: Annotated[str, typer.Option(help="Default: the only model there is.")] = "",
    prompt_tokens: Annotated[int | None, typer.Option(min=0, help="Length of the prompt. Default: not known.")] = None,
    session_key: Annotated[str, typer.Option(help="The same key prefers the same workers.")] = "",
    ttl_s: Annotated[float | None, typer.Option("--ttl", min=1, max=3600, help="Seconds it is held; else 60.")] = None,
    request_id: Annotated[str, typer.Option(help="The same one twice reserves one pair.")] = "",
    output: Output = Format.TABLE,
    admin: Admin = DEFAULT_ADMIN,
) -> None:
    """Borrow a pair for a while.

    Prints what a client needs to call both workers itself. The reservation lapses by itself.
    """
    request = pair_service_pb2.ReservePairRequest(
        model=model,
        prompt_tokens=prompt_tokens,
        session_key=session_key,
        request_id=request_id,
        ttl=None if ttl_s is None else duration(ttl_s),
    )
    with operators(admin) as opened:
        answer = call(pair_service_pb2_grpc.PairServiceStub(opened).ReservePair, request)
    show(answer, output, lambda: reservation_text(answer))


@app.command(epilog=example("tandem pairs release 9c4b --outcome unused"))
def release(
    pair_id: PairId,
    outcome: Annotated[OutcomeWord, typer.Option(help="How it went; it feeds the workers' health.")],
    message: Annotated[str, typer.Option(help="What the failing worker said.")] = "",
    output: Output = Format.TABLE,
    admin: Admin = DEFAULT_ADMIN,
) -> None:
    """Give a borrowed pair back; prints its id."""
    with operators(admin) as opened:
        request = pair_service_pb2.ReleasePairRequest(
            pair_id=find_pair(opened, pair_id),
            outcome=number(pair_service_pb2.PairOutcome, outcome),
            message=message,
        )
        answer = call(pair_service_pb2_grpc.PairServiceStub(opened).ReleasePair, request)
    show_id(answer, output, answer.pair.id)

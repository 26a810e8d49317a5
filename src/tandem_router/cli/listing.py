"""Whole lists, page by page, and the ids that are given by their beginning."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import grpc
import typer

from tandem.v1 import (
    job_service_pb2,
    job_service_pb2_grpc,
    pair_service_pb2,
    pair_service_pb2_grpc,
    worker_service_pb2,
    worker_service_pb2_grpc,
)
from tandem_router.cli.console import ADMIN_CREDENTIALS, DEFAULT_ADMIN, FAILED, call, complain, to_stderr
from tandem_router.errors import Reason, TandemError

__all__ = [
    "JobId",
    "PageSize",
    "PairId",
    "WorkerId",
    "every_page",
    "find_job",
    "find_pair",
    "find_worker",
]

PageSize = Annotated[int, typer.Option(min=0, max=1000, help="Things per call; 0 is the server's own. All are shown.")]

_COMPLETE_TIMEOUT_S = 1.0
"""A shell waits for this at the press of a key."""
_SHOWN = 5
"""Ids to name of those that a beginning could mean."""


def every_page(method: Any, request: Any) -> Any:
    """All pages of a List rpc as one answer: its first repeated field has everything, the rest is the first page's.

    Raises grpc.RpcError.
    """
    request = type(request).FromString(request.SerializeToString())
    answer = call(method, request)
    field = answer.DESCRIPTOR.fields[0].name
    token = answer.next_page_token
    while token:
        request.page_token = token
        page = call(method, request)
        getattr(answer, field).extend(getattr(page, field))
        token = page.next_page_token
    answer.next_page_token = ""
    return answer


def find_worker(opened: grpc.Channel, given: str) -> str:
    """The id of the one worker whose id begins with `given`; a whole id is taken as it is. Raises TandemError."""
    return _find(given, "worker", Reason.WORKER_NOT_FOUND, lambda: _workers(opened))


def find_job(opened: grpc.Channel, given: str) -> str:
    """As find_worker, for jobs."""
    stub = job_service_pb2_grpc.JobServiceStub(opened)
    request = job_service_pb2.ListJobsRequest(page_size=1000)
    return _find(given, "job", Reason.JOB_NOT_FOUND, lambda: _ids(every_page(stub.ListJobs, request).jobs))


def find_pair(opened: grpc.Channel, given: str) -> str:
    """As find_worker, for pairs."""
    stub = pair_service_pb2_grpc.PairServiceStub(opened)
    request = pair_service_pb2.ListPairsRequest(page_size=1000)
    return _find(given, "pair", Reason.PAIR_NOT_FOUND, lambda: _ids(every_page(stub.ListPairs, request).pairs))


def _workers(opened: grpc.Channel) -> Iterator[tuple[str, str]]:
    stub = worker_service_pb2_grpc.WorkerServiceStub(opened)
    answer = every_page(stub.ListWorkers, worker_service_pb2.ListWorkersRequest(page_size=1000))
    return ((worker.id, worker.spec.url or worker.spec.agent.agent_id) for worker in answer.workers)


def _ids(things: Any) -> Iterator[tuple[str, str]]:
    return ((thing.id, "") for thing in things)


def _find(given: str, noun: str, missing: Reason, listed: Callable[[], Iterator[tuple[str, str]]]) -> str:
    # What can begin no id goes to the server as it is, whose refusal says what an id looks like.
    if _is_uuid(given) or not re.fullmatch(r"[0-9a-fA-F-]+", given):
        return given
    found = [(one, about) for one, about in listed() if one.startswith(given.lower())]
    if not found:
        raise TandemError(missing, f"no {noun}'s id begins with {given!r}")
    if len(found) > 1:
        complain(None, f"AMBIGUOUS_ID: {given!r} begins the ids of {len(found)} {noun}s; give more of it.")
        for one, about in found[:_SHOWN]:
            to_stderr(f"  {one}  {about}".rstrip())
        raise typer.Exit(FAILED)
    return found[0][0]


def _is_uuid(text: str) -> bool:
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True


def _complete_worker(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    admin = context.params.get("admin") or DEFAULT_ADMIN
    credentials = ADMIN_CREDENTIALS.get()
    opening = grpc.insecure_channel(admin) if credentials is None else grpc.secure_channel(admin, credentials)
    with opening as opened:
        request = worker_service_pb2.ListWorkersRequest(page_size=1000)
        try:
            answer = worker_service_pb2_grpc.WorkerServiceStub(opened).ListWorkers(request, timeout=_COMPLETE_TIMEOUT_S)
        except grpc.RpcError:
            return []  # a shell that completes is no place for complaints
    return [
        (worker.id, worker.spec.url or worker.spec.agent.agent_id)
        for worker in answer.workers
        if worker.id.startswith(incomplete.lower())
    ]


_BEGINNING = "Its id, or as much of the beginning as is unique."
WorkerId = Annotated[str, typer.Argument(metavar="WORKER", help=_BEGINNING, autocompletion=_complete_worker)]
JobId = Annotated[str, typer.Argument(metavar="JOB", help=_BEGINNING)]
PairId = Annotated[str, typer.Argument(metavar="PAIR", help=_BEGINNING)]

"""Ids by their beginning, whole lists over pages, and what a shell completes."""

from __future__ import annotations

import pytest
from google.protobuf import json_format
from tests.cli.fakes import FakeRouter, run
from tests.cli.fleet import furnish
from tests.cli.things import J1, P1, W1, W2, WORKERS

from tandem.v1 import job_service_pb2, pair_service_pb2, worker_service_pb2


def two_pages(request: worker_service_pb2.ListWorkersRequest) -> worker_service_pb2.ListWorkersResponse:
    if not request.page_token:
        return worker_service_pb2.ListWorkersResponse(workers=WORKERS[:1], next_page_token="2", revision=41)
    return worker_service_pb2.ListWorkersResponse(workers=WORKERS[1:], revision=43)


def test_list_shows_every_page_and_the_first_one_s_revision(fake: FakeRouter) -> None:
    fake.says(WorkerService_ListWorkers=two_pages)
    _, out, _ = run("workers", "list", "-o", "json")
    parsed = json_format.Parse(out, worker_service_pb2.ListWorkersResponse())
    assert ([worker.id for worker in parsed.workers], parsed.revision, parsed.next_page_token) == ([W1, W2], 41, "")


def test_page_size_and_filter_go_with_every_page(fake: FakeRouter) -> None:
    fake.says(WorkerService_ListWorkers=two_pages)
    flags = "--page-size 1 --model m --type prefill --status ready --label a=b --runtime vllm"
    run("workers", "list", *flags.split())
    asked = fake.requests("WorkerService/ListWorkers")
    expected = {
        "model": "m",
        "workerTypes": ["WORKER_TYPE_PREFILL"],
        "statuses": ["WORKER_STATUS_READY"],
        "runtimeTypes": ["RUNTIME_TYPE_VLLM"],
        "labels": {"a": "b"},
    }
    assert [(one.page_size, one.page_token, json_format.MessageToDict(one.filter)) for one in asked] == [
        (1, "", expected),
        (1, "2", expected),
    ]


@pytest.mark.parametrize("given", ["1a", "1A", W1[:20], W1])
def test_beginning_of_an_id_is_enough(fake: FakeRouter, given: str) -> None:
    furnish(fake)
    run("workers", "undrain", given)
    assert [one.worker_id for one in fake.requests("WorkerService/UndrainWorker")] == [W1]


@pytest.mark.parametrize("given", [W1, W1.upper(), W1.replace("-", ""), "no-uuid"])
def test_whole_id_and_nonsense_go_to_the_server_as_they_are(fake: FakeRouter, given: str) -> None:
    furnish(fake)
    run("workers", "undrain", given)
    assert [(name, request.worker_id) for name, request in fake.asked] == [("WorkerService/UndrainWorker", given)]


@pytest.mark.parametrize(
    ("line", "rpc", "field", "found"),
    [
        ("jobs get 9", "JobService/GetJob", "job_id", J1),
        ("jobs list --worker 1b", "JobService/ListJobs", "worker_id", W2),
        ("pairs release 5 --outcome unused", "PairService/ReleasePair", "pair_id", P1),
        ("pairs list --worker 1b", "PairService/ListPairs", "filter.worker_id", W2),
        ("plan x --worker 1b", "PairService/PlanPair", "request.target_worker.worker_id", W2),
        ("plan x --prefill-worker 1b", "PairService/PlanPair", "request.target_prefill_worker.worker_id", W2),
    ],
)
def test_beginning_is_taken_wherever_an_id_is(fake: FakeRouter, line: str, rpc: str, field: str, found: str) -> None:
    furnish(fake)
    run(*line.split())
    value = fake.requests(rpc)[-1]
    for part in field.split("."):
        value = getattr(value, part)
    assert value == found


@pytest.mark.parametrize("line", ["jobs get 9", "pairs release 5 --outcome unused"])
def test_unknown_beginning_says_so_and_calls_nothing(fake: FakeRouter, line: str) -> None:
    fake.says(
        JobService_ListJobs=job_service_pb2.ListJobsResponse(),
        PairService_ListPairs=pair_service_pb2.ListPairsResponse(),
    )
    code, _, err = run(*line.split())
    assert (code, "NOT_FOUND" in err, len(fake.asked)) == (1, True, 1)


def complete(line: str) -> list[str]:
    """What a shell offers after `line`, one suggestion a line."""
    env = {"_TANDEM_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": line}
    return run(env=env)[1].splitlines()


def test_shell_completes_worker_ids_with_their_urls(fake: FakeRouter) -> None:
    furnish(fake)
    offered = "\n".join(complete("tandem workers drain 1a"))
    assert (W1 in offered, "grpc" in offered, W2 in offered) == (True, True, False)


def test_shell_gets_no_complaint_when_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANDEM_ADMIN_ADDRESS", "127.0.0.1:1")
    assert "UNREACHABLE" not in "\n".join(complete("tandem workers drain 1a"))

"""Watches on the command line: resumed where the reader fell behind, read again where the API has none."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from tests.cli.fakes import FakeRouter, run
from tests.cli.things import FAILED_JOB, NOW_S, W1, WORKERS, drain_job

from tandem.v1 import job_service_pb2, watch_pb2, worker_service_pb2
from tandem_router.cli import watching
from tandem_router.errors import Reason, TandemError

Event = worker_service_pb2.WatchWorkersResponse
SYNCED = Event(type=watch_pb2.WATCH_EVENT_TYPE_SYNCED, revision=41)
UPDATED = Event(type=watch_pb2.WATCH_EVENT_TYPE_UPDATED, revision=42, worker=WORKERS[0])
SLOW = TandemError(Reason.SLOW_CLIENT, "the reader fell behind")


def test_reader_that_fell_behind_resumes_after_the_last_revision_seen(fake: FakeRouter) -> None:
    answers = iter([[SYNCED, UPDATED, SLOW], [SYNCED]])
    fake.says(WorkerService_WatchWorkers=lambda _: next(answers))
    code, out, _ = run("workers", "watch", "-o", "json")
    asked = [one.from_revision for one in fake.requests("WorkerService/WatchWorkers")]
    assert (code, out.count("\n"), asked) == (0, 3, [0, 42])


def test_reader_that_fell_behind_in_the_snapshot_is_told(fake: FakeRouter) -> None:
    fake.says(WorkerService_WatchWorkers=[SLOW])
    code, _, err = run("workers", "watch")
    assert (code, err.startswith("SLOW_CLIENT: ")) == (1, True)


def test_watch_that_broke_says_where_to_resume(fake: FakeRouter) -> None:
    fake.says(WorkerService_WatchWorkers=[SYNCED, UPDATED, grpc.StatusCode.UNAVAILABLE])
    code, _, err = run("workers", "watch")
    assert (code, err.splitlines()[0]) == (3, "The watch broke; --from-revision 42 resumes it.")


def test_list_that_watches_begins_where_the_list_ended(fake: FakeRouter) -> None:
    fake.says(
        WorkerService_ListWorkers=worker_service_pb2.ListWorkersResponse(workers=WORKERS, revision=41),
        WorkerService_WatchWorkers=[SYNCED],
    )
    run("workers", "list", "-w", "--type", "decode")
    (listed,), (watched,) = (fake.requests(f"WorkerService/{verb}Workers") for verb in ("List", "Watch"))
    assert (watched.from_revision, watched.filter) == (41, listed.filter)


def test_watch_sends_what_it_was_asked_for(fake: FakeRouter) -> None:
    fake.says(WorkerService_WatchWorkers=[SYNCED])
    run(*["workers", "watch", "--from-revision", "7", "--stop-after-synced", "--progress", "30", "--model", "m"])
    (asked,) = fake.requests("WorkerService/WatchWorkers")
    assert (asked.from_revision, asked.stop_after_synced, asked.progress_interval.seconds, asked.filter.model) == (
        7,
        True,
        30,
        "m",
    )


@pytest.mark.usefixtures("clock")
def test_list_without_a_watch_is_read_again_and_shows_what_changed(
    fake: FakeRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "POLL_S", 0.0)
    lists: Any = iter([[FAILED_JOB], [FAILED_JOB], [FAILED_JOB, drain_job(2)], KeyboardInterrupt])

    def listed(_: Any) -> Any:
        jobs = next(lists)
        if jobs is KeyboardInterrupt:
            return grpc.StatusCode.CANCELLED
        return job_service_pb2.ListJobsResponse(jobs=jobs)

    fake.says(JobService_ListJobs=listed)
    _, out, _ = run("jobs", "list", "-w")
    assert [line.split()[1] for line in out.splitlines()] == ["TYPE", "register_worker", "drain_worker"]


@pytest.mark.usefixtures("clock")
def test_age_of_a_clock_that_runs_ahead_is_nothing(fake: FakeRouter) -> None:
    worker = worker_service_pb2.GetWorkerResponse()
    worker.worker.id = W1
    worker.worker.create_time.FromSeconds(int(NOW_S) + 60)
    fake.says(WorkerService_GetWorker=worker)
    assert "created     0s ago" in run("workers", "get", W1)[1]

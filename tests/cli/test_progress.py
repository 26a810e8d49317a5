"""Waiting for a job: its steps as they change, its end, the wait's own end, and Ctrl-C."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from tests.cli.fakes import FakeRouter, Terminal, message, run
from tests.cli.fleet import furnish
from tests.cli.things import FAILED_JOB, J1, W1, WORKERS, drain_job

from tandem.v1 import job_pb2, job_service_pb2, worker_service_pb2
from tandem_router.cli import progress
from tandem_router.cli.progress import Steps, wait_for_job

Watched = job_service_pb2.WatchJobResponse


def test_failed_job_ends_with_its_reason_and_what_to_do(fake: FakeRouter) -> None:
    furnish(fake)
    fake.says(JobService_WatchJob=[Watched(job=FAILED_JOB)])
    code, out, err = run("workers", "add", "grpc://a:1", "--wait")
    assert (code, out, err.splitlines()[-2:]) == (
        1,
        f"{W1}\n",
        [
            "RUNTIME_NOT_DETECTED: nothing answers",
            "  Check the address and port, or state runtime_type.",
        ],
    )


def test_cancelled_job_is_a_failure_of_who_waits(fake: FakeRouter) -> None:
    furnish(fake)
    cancelled = message(job_pb2.Job, id=J1, state="JOB_STATE_CANCELLED")
    fake.says(JobService_WatchJob=[Watched(job=cancelled)])
    assert run("workers", "drain", "1a") == (1, f"{J1}\n", "CANCELLED: The job was cancelled.\n")


def test_drain_sends_its_deadline_and_reason(fake: FakeRouter) -> None:
    furnish(fake)
    run(*["workers", "drain", "1a", "--drain-timeout", "2.5", "--reason", "driver", "--generation", "4", "--no-wait"])
    (asked,) = fake.requests("WorkerService/DrainWorker")
    assert asked == message(
        worker_service_pb2.DrainWorkerRequest,
        workerId=W1,
        timeout="2.500s",
        reason="driver",
        expectedGeneration=4,
    )


def test_job_that_outlives_the_wait_goes_on(fake: FakeRouter) -> None:
    furnish(fake)
    fake.says(JobService_WatchJob=[Watched(job=drain_job(3)), grpc.StatusCode.DEADLINE_EXCEEDED])
    code, _, err = run("workers", "drain", "1a", "--timeout", "9")
    assert (code, err.splitlines()[1:]) == (
        1,
        [
            f"TIMEOUT: job {J1} still runs after 9 s; it goes on.",
            f"  Follow it with: tandem jobs watch {J1} --admin {fake.address}",
        ],
    )


def test_watch_that_broke_is_opened_again(fake: FakeRouter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_RESUME_AFTER_S", 0.0)
    furnish(fake)
    answers = iter(
        [
            [Watched(job=drain_job(3)), grpc.StatusCode.UNAVAILABLE],
            [Watched(job=drain_job(1)), Watched(job=drain_job(0, is_done=True))],
        ]
    )
    fake.says(JobService_WatchJob=lambda _: next(answers))
    assert run("workers", "drain", "1a")[2].splitlines() == [
        "drain running: waiting for 3 legs",
        "drain running: waiting for 1 legs",
        "drain succeeded: idle",
    ]


def test_router_that_is_gone_ends_the_wait(fake: FakeRouter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_RESUME_AFTER_S", 0.0)
    furnish(fake)
    answers = iter([[Watched(job=drain_job(3)), grpc.StatusCode.UNAVAILABLE], [grpc.StatusCode.UNAVAILABLE]])
    fake.says(JobService_WatchJob=lambda _: next(answers))
    assert run("workers", "drain", "1a")[0] == 3


def test_interrupt_leaves_the_job_and_says_how_to_follow_it(fake: FakeRouter, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> Iterator[job_pb2.Job]:
        yield drain_job(3)
        raise KeyboardInterrupt

    monkeypatch.setattr(progress, "states", interrupted)
    furnish(fake)
    code, _, err = run("workers", "drain", "1a")
    assert (code, err.splitlines()[1:], fake.requests("JobService/CancelJob")) == (
        130,
        [f"Interrupted; job {J1} goes on.", f"  Follow it with: tandem jobs watch {J1} --admin {fake.address}"],
        [],
    )


def test_default_address_needs_no_flag_to_follow(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "states", lambda *_: iter([FAILED_JOB]))
    with grpc.insecure_channel("127.0.0.1:1") as unused:
        assert not wait_for_job(unused, J1, None)
    assert "--admin" not in capsys.readouterr().err


def test_steps_on_a_terminal_are_written_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    terminal = Terminal()
    steps = Steps(terminal)
    for job in (drain_job(3), drain_job(2), drain_job(0, is_done=True)):
        steps.show(job)
    clear = "\r\x1b[K"
    assert terminal.getvalue() == (
        f"drain running: waiting for 3 legs{clear}drain running: waiting for 2 legs{clear}drain succeeded: idle\n"
    )


def test_long_line_of_a_terminal_is_cut_where_it_would_wrap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "11")
    terminal = Terminal()
    Steps(terminal).show(drain_job(3))
    assert terminal.getvalue() == "drain runn"


def test_job_that_waits_for_another_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    steps = Steps(sys.stderr)
    for _ in range(2):
        steps.show(message(job_pb2.Job, state="JOB_STATE_PENDING", steps=[{"name": "drain", "state": 1}]))
    assert capsys.readouterr().err == "waits for its turn\n"


def test_steps_that_a_failure_made_pointless_are_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    skipped = [
        {"name": "a", "state": "STEP_STATE_SKIPPED"},
        {"name": "b", "state": "STEP_STATE_SKIPPED", "detail": "x"},
    ]
    Steps(sys.stderr).show(message(job_pb2.Job, state="JOB_STATE_RUNNING", steps=skipped))
    assert capsys.readouterr().err == "b skipped: x\n"


def test_new_try_with_nothing_new_is_not_shown_again(capsys: pytest.CaptureFixture[str]) -> None:
    steps = Steps(sys.stderr)
    for attempts in (2, 3):
        running = {"name": "connect", "state": "STEP_STATE_RUNNING", "attempts": attempts, "detail": "refused"}
        steps.show(message(job_pb2.Job, state="JOB_STATE_RUNNING", steps=[running]))
    assert capsys.readouterr().err == "connect running after 2 tries: refused\n"


def test_job_that_ended_otherwise_is_no_failure_of_a_cancel(fake: FakeRouter) -> None:
    furnish(fake)
    fake.says(
        JobService_CancelJob=job_service_pb2.CancelJobResponse(job=drain_job(2)),
        JobService_WatchJob=[Watched(job=drain_job(0, is_done=True))],
    )
    assert run("jobs", "cancel", "90", "--wait") == (0, f"{J1}\n", "")


def test_update_without_a_job_waits_for_nothing(fake: FakeRouter) -> None:
    furnish(fake)
    fake.says(WorkerService_UpdateWorker=worker_service_pb2.UpdateWorkerResponse(worker=WORKERS[0]))
    assert (run("workers", "update", "1a", "--label", "a=b", "--wait")[0], fake.requests("JobService/WatchJob")) == (
        0,
        [],
    )

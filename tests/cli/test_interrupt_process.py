"""Ctrl-C and a closed pipe, as the command line meets them: as a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from tests.cli.fakes import FakeRouter
from tests.cli.fleet import furnish
from tests.cli.things import J1, drain_job

from tandem.v1 import job_service_pb2

pytestmark = pytest.mark.e2e


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tandem_router", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def held(fake: FakeRouter) -> Iterator[FakeRouter]:
    """A router whose drain never ends while the test runs."""
    furnish(fake)
    over = threading.Event()

    def watched(_: object) -> Iterator[job_service_pb2.WatchJobResponse]:
        yield job_service_pb2.WatchJobResponse(job=drain_job(3))
        over.wait(60)

    fake.says(JobService_WatchJob=watched)
    yield fake
    over.set()


def test_ctrl_c_ends_the_wait_and_not_the_job(held: FakeRouter) -> None:
    with start("workers", "drain", "1a") as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "drain running: waiting for 3 legs\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert (process.returncode, err.splitlines()) == (
        130,
        [f"Interrupted; job {J1} goes on.", f"  Follow it with: tandem jobs watch {J1} --admin {held.address}"],
    )
    assert not held.requests("JobService/CancelJob")


def test_ctrl_c_ends_a_watch_in_silence(held: FakeRouter) -> None:
    with start("jobs", "watch", "90", "-o", "json") as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("{")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, "")


def test_reader_that_has_enough_is_no_fault(fake: FakeRouter) -> None:
    furnish(fake)
    read_end, write_end = os.pipe()
    os.close(read_end)
    process = subprocess.Popen(
        [sys.executable, "-m", "tandem_router", "workers", "list"], stdout=write_end, stderr=subprocess.PIPE, text=True
    )
    os.close(write_end)
    _, err = process.communicate(timeout=20)
    assert "Traceback" not in err

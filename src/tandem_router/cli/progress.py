"""Waits for a job and shows its steps as they change."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from typing import TextIO

import grpc
import typer

from tandem.v1 import job_pb2, job_service_pb2, job_service_pb2_grpc
from tandem_router.cli.console import DEFAULT_ADMIN, FAILED, INTERRUPTED, advise, complain, to_stderr
from tandem_router.cli.text import one_line, printable, styled
from tandem_router.cli.words import kind

__all__ = ["Steps", "states", "step_line", "wait_for_job", "wait_or_fail"]

_RESUME_AFTER_S = 0.5


def states(opened: grpc.Channel, job_id: str, timeout_s: float | None = None) -> Iterator[job_pb2.Job]:
    """A job now and after every change, its last state at the end; a stream that broke is opened again.

    Raises grpc.RpcError; DEADLINE_EXCEEDED after timeout_s.
    """
    stub = job_service_pb2_grpc.JobServiceStub(opened)
    request = job_service_pb2.WatchJobRequest(job_id=job_id)
    until_s = None if timeout_s is None else time.monotonic() + timeout_s
    while True:
        came = False
        try:
            left_s = None if until_s is None else max(0.0, until_s - time.monotonic())
            for answer in stub.WatchJob(request, timeout=left_s):
                came = True
                yield answer.job
            return
        except grpc.RpcError as failure:
            # A router that has gone answers the next call with nothing, and that one is not repeated.
            is_broken = isinstance(failure, grpc.Call) and failure.code() is grpc.StatusCode.UNAVAILABLE
            if not (came and is_broken):
                raise
            time.sleep(_RESUME_AFTER_S)


def wait_for_job(
    opened: grpc.Channel,
    job_id: str,
    timeout_s: float | None,
    *,
    steps: Steps | None = None,
    admin: str = DEFAULT_ADMIN,
) -> bool:
    """Wait for a job's end; True when it succeeded, else the complaint is printed.

    steps: shows them as they change; None shows nothing. Ctrl-C ends the wait and not the job. Raises grpc.RpcError,
    typer.Exit.
    """
    job = job_pb2.Job()
    try:
        for job in states(opened, job_id, timeout_s):
            if steps is not None:
                steps.show(job)
    except grpc.RpcError as failure:
        is_late = isinstance(failure, grpc.Call) and failure.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        if timeout_s is None or not is_late:
            raise
        _leave(steps)
        complain(None, f"TIMEOUT: job {job_id} still runs after {timeout_s:g} s; it goes on.")
        to_stderr(f"  {_how_to_follow(job_id, admin)}")
        return False
    except KeyboardInterrupt:
        _leave(steps)
        to_stderr(f"Interrupted; job {job_id} goes on.\n  {_how_to_follow(job_id, admin)}")
        raise typer.Exit(INTERRUPTED) from None
    if job.state == job_pb2.JOB_STATE_SUCCEEDED:
        return True
    complain(None, f"{job.failure.reason or 'CANCELLED'}: {job.failure.message or 'The job was cancelled.'}")
    advise(job.failure.reason)
    return False


def wait_or_fail(opened: grpc.Channel, job_id: str, timeout_s: float | None, admin: str) -> None:
    """As wait_for_job, with its steps on stderr; a job that did not succeed, or not in time, ends the command."""
    if not wait_for_job(opened, job_id, timeout_s, steps=Steps(sys.stderr), admin=admin):
        raise typer.Exit(FAILED)


def _leave(steps: Steps | None) -> None:
    if steps is not None:
        steps.leave()


class Steps:
    """Writes a job's steps to a stream: a line for each that ended, and what the running one waits for.

    On a terminal the running step's line is written over; elsewhere it is a new line whenever its detail changes.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._shown: set[str] = set()
        self._is_live = stream.isatty()
        self._open = False

    def show(self, job: job_pb2.Job) -> None:
        """The job as it is now."""
        if job.state == job_pb2.JOB_STATE_PENDING:
            self._running("waits for its turn", "waits for its turn")
        for step in job.steps:
            line = printable(one_line(step_line(step)), self._stream)
            if step.state == job_pb2.STEP_STATE_RUNNING:
                # By the detail alone: a new try shows nothing new until it has failed or found something.
                self._running(line, f"{step.name}: {step.detail}" if step.detail else "")
                continue
            # Steps that a failure made pointless are skipped without a word.
            is_ended = step.state != job_pb2.STEP_STATE_PENDING
            is_silent = step.state == job_pb2.STEP_STATE_SKIPPED and not step.detail
            if is_ended and not is_silent and line not in self._shown:
                self._shown.add(line)
                self._clear()
                self._line(line, "red" if step.state == job_pb2.STEP_STATE_FAILED else "dim")

    def leave(self) -> None:
        """Go on to a fresh line: somebody else writes now."""
        if self._open:
            print(file=self._stream, flush=True)
            self._open = False

    def _running(self, line: str, news: str) -> None:
        if self._is_live:
            self._clear()
            # A line that wraps could not be written over.
            clipped = line[: max(1, shutil.get_terminal_size().columns - 1)]
            print(styled(clipped, "yellow", self._stream), end="", file=self._stream, flush=True)
            self._open = True
        elif news and news not in self._shown:
            self._shown.add(news)
            self._line(line, "dim")

    def _line(self, line: str, style: str) -> None:
        print(styled(line, style, self._stream), file=self._stream, flush=True)

    def _clear(self) -> None:
        if self._open:
            print("\r\x1b[K", end="", file=self._stream)
            self._open = False


def step_line(step: job_pb2.JobStep) -> str:
    """A step, its state, its tries when there was more than one, and what was found."""
    state = kind(job_pb2.StepState, step.state)
    tries = f" after {step.attempts} tries" if step.attempts > 1 else ""
    detail = f": {step.detail}" if step.detail else ""
    failure = f" ({step.failure.reason}: {step.failure.message})" if step.HasField("failure") else ""
    return f"{step.name} {state}{tries}{detail}{failure}"


def _how_to_follow(job_id: str, admin: str) -> str:
    where = "" if admin == DEFAULT_ADMIN else f" --admin {admin}"
    return f"Follow it with: tandem jobs watch {job_id}{where}"

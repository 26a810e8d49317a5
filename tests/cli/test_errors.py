"""What a person sees when something is wrong, and the exit code that a script sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.cli.fakes import FakeRouter, Terminal, run
from tests.cli.things import W1, WORKERS

from tandem.v1 import worker_service_pb2
from tandem_router.cli import console
from tandem_router.cli.text import printable, styled
from tandem_router.errors import TABLE, Reason, TandemError


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_is_shown_with_what_to_do(fake: FakeRouter, reason: Reason) -> None:
    fake.says(WorkerService_GetWorker=TandemError(reason, "it is so", field="worker_id"))
    code, out, err = run("workers", "get", W1)
    assert (code, out, err) == (1, "", f"{reason}: worker_id: it is so\n  {TABLE[reason].action}{wait(reason)}\n")


def wait(reason: Reason) -> str:
    """What the server adds to rows that promise a RetryInfo."""
    from tandem_router.wire.status import DEFAULT_RETRY_AFTER_S

    after_s = DEFAULT_RETRY_AFTER_S.get(reason)
    return "" if after_s is None else f" RetryInfo: {after_s:g} s."


def test_status_of_somebody_else_is_shown_as_it_is(fake: FakeRouter) -> None:
    fake.says(WorkerService_GetWorker=grpc.StatusCode.PERMISSION_DENIED)
    assert run("workers", "get", W1) == (1, "", "PERMISSION_DENIED: from the fake\n")


def test_nobody_at_the_address_is_exit_code_3() -> None:
    code, _, err = run("workers", "list", "--admin", "127.0.0.1:1")
    assert (code, err.splitlines()[0]) == (3, "UNREACHABLE: no router answers at 127.0.0.1:1.")


def test_silent_router_is_exit_code_3(fake: FakeRouter) -> None:
    fake.says(WorkerService_GetWorker=grpc.StatusCode.DEADLINE_EXCEEDED)
    code, _, err = run("workers", "get", W1)
    assert (code, err) == (3, f"UNREACHABLE: the router at {fake.address} did not answer in time.\n")


def test_interrupted_call_is_exit_code_130(fake: FakeRouter, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(method: Any, request: Any, /, timeout: float | None = None) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("tandem_router.cli.workers.call", interrupt)
    assert run("workers", "get", W1)[0] == console.INTERRUPTED


@pytest.mark.parametrize(
    "line",
    [
        "generate",
        "generate x --tokens 1",
        "generate --tokens a",
        "plan",
        "plan x --tokens 1",
        "nope",
        "workers add",
        "workers add grpc://a:1 --label zone",
        "workers add grpc://a:1 --set nope=1",
        "workers add grpc://a:1 --set health.nope=1",
        "workers add grpc://a:1 --set priority.x=1",
        "workers add grpc://a:1 --set priority=high",
        "workers add grpc://a:1 --set worker_type=nurse",
        "workers add -f /nonexistent/spec.yaml",
        "workers update 1a",
        "workers list --status WELL",
        "pairs release 50",
        "--tls-key README.md workers list",
    ],
)
def test_wrong_usage_is_exit_code_2(fake: FakeRouter, line: str) -> None:
    fake.says(WorkerService_ListWorkers=worker_service_pb2.ListWorkersResponse(workers=WORKERS))
    assert (run(*line.split())[0], fake.requests("WorkerService/CreateWorker")) == (2, [])


@pytest.mark.parametrize(("line", "is_secure"), [("workers list", True), ("jobs list", True), ("models", False)])
def test_credentials_are_for_the_admin_listener_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str, is_secure: bool
) -> None:
    authorities = tmp_path / "ca.pem"
    authorities.write_text("none")
    opened: list[str] = []

    def open_secure(address: str, credentials: Any, options: Any) -> grpc.Channel:
        opened.append(address)
        return grpc.insecure_channel("127.0.0.1:1")

    monkeypatch.setattr(grpc, "secure_channel", open_secure)
    at = ["--router" if line == "models" else "--admin", "127.0.0.1:1"]
    assert (run("--tls-ca", str(authorities), *line.split(), *at)[0], opened) == (3, ["127.0.0.1:1"] * is_secure)


@pytest.mark.parametrize(("stream", "text"), [(Terminal(), "\x1b[31mx\x1b[0m"), (None, "x")])
def test_colour_is_for_terminals_only(monkeypatch: pytest.MonkeyPatch, stream: Any, text: str) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with open("/dev/null", encoding="utf-8") as pipe:
        assert styled("x", "red", stream or pipe) == text


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_terminal_that_wants_no_colour_gets_none(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    assert styled("x", "red", Terminal()) == "x"


@pytest.mark.parametrize(("stream", "text"), [(Terminal(), "a\ufffd[2Jü🙂\n"), (None, "a\x1b[2Jü🙂\n")])
def test_text_from_outside_cannot_drive_a_terminal(stream: Any, text: str) -> None:
    with open("/dev/null", encoding="utf-8") as pipe:
        assert printable("a\x1b[2Jü🙂\n", stream or pipe) == text

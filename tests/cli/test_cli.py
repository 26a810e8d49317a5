"""What the commands print, to the letter, and the exit codes."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from typer.testing import CliRunner

from tandem.v1 import (
    generate_result_pb2,
    job_pb2,
    job_service_pb2,
    job_service_pb2_grpc,
    router_service_pb2_grpc,
    worker_pb2,
    worker_service_pb2,
    worker_service_pb2_grpc,
)
from tandem_router.cli.app import app
from tandem_router.cli.console import printable, styled, table
from tandem_router.cli.generate import summary
from tandem_router.cli.jobs import job_text
from tandem_router.cli.workers import workers_table
from tandem_router.errors import Code, Reason, TandemError
from tandem_router.wire.status import encode

W1, W2, J1 = (f"00000000-0000-4000-8000-00000000000{n}" for n in (1, 2, 9))


def message(kind: Any, **fields: Any) -> Any:
    return json_format.ParseDict(fields, kind())


WORKERS = [
    message(
        worker_pb2.Worker,
        id=W1,
        status="WORKER_STATUS_READY",
        spec={"url": "grpc://a:1", "workerType": "WORKER_TYPE_PREFILL"},
        facts={"runtimeType": "RUNTIME_TYPE_SGLANG", "models": [{"id": "tiny"}]},
        ranks=[{"inFlight": 2}, {"inFlight": 3}],
    ),
    message(worker_pb2.Worker, id=W2, status="WORKER_STATUS_PENDING", spec={"url": "grpc://b:20"}),
]
WORKERS_TABLE = f"""\
ID                                    TYPE     RUNTIME  STATUS   MODEL  IN-FLIGHT  URL
{W1}  prefill  sglang   READY    tiny   5          grpc://a:1
{W2}  -        -        PENDING  -      0          grpc://b:20"""

JOB = message(
    job_pb2.Job,
    id=J1,
    type="JOB_TYPE_REGISTER_WORKER",
    state="JOB_STATE_FAILED",
    workerId=W1,
    steps=[
        {"name": "connect", "state": "STEP_STATE_SUCCEEDED", "attempts": 3, "detail": "grpc://a:1"},
        {
            "name": "detect_runtime",
            "state": "STEP_STATE_FAILED",
            "attempts": 1,
            "failure": {"reason": "RUNTIME_NOT_DETECTED", "message": "nothing answers"},
        },
    ],
    failure={"reason": "RUNTIME_NOT_DETECTED", "message": "nothing answers"},
)
JOB_TEXT = f"""\
{J1}  register worker  FAILED  worker {W1}
  connect succeeded after 3 tries: grpc://a:1
  detect_runtime failed (RUNTIME_NOT_DETECTED: nothing answers)
  RUNTIME_NOT_DETECTED: nothing answers"""

FINISHED = message(
    generate_result_pb2.Finished,
    usage={"promptTokens": 5, "completionTokens": 7},
    servedBy={
        "handshake": "HANDSHAKE_KIND_RENDEZVOUS",
        "pairId": "p-1",
        "prefill": {"workerId": W1, "dpRank": 0},
        "decode": {"workerId": W2, "dpRank": 1},
        "bootstrapRoom": {"number": 1030},
    },
    timings={"queue": "0.0005s", "prefill": "0.010s", "decode": "0.020s", "total": "0.0305s"},
    attempts=[{"number": 1}, {"number": 2}],
)
SUMMARY = (
    "pair p-1 (rendezvous) | prefill 00000000/0 decode 00000000/1 | room 1030 | 5 + 7 tokens | 2 attempts | "
    "queue 0.5 ms, prefill 10.0 ms, decode 20.0 ms, total 30.5 ms"
)


def test_workers_table_to_the_letter() -> None:
    assert workers_table(WORKERS) == WORKERS_TABLE


def test_job_text_to_the_letter() -> None:
    assert job_text(JOB) == JOB_TEXT


def test_summary_to_the_letter() -> None:
    assert summary(FINISHED) == SUMMARY


def test_table_without_rows_is_its_head() -> None:
    assert table(("A", "B"), []) == "A  B"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "text"), [(Terminal(), "\x1b[31mx\x1b[0m"), (io.StringIO(), "x")])
def test_colour_is_for_terminals_only(stream: io.StringIO, text: str) -> None:
    assert styled("x", "red", stream) == text


@pytest.mark.parametrize(("stream", "text"), [(Terminal(), "a\ufffd[2Jü🙂\n"), (io.StringIO(), "a\x1b[2Jü🙂\n")])
def test_answer_cannot_drive_a_terminal(stream: io.StringIO, text: str) -> None:
    assert printable("a\x1b[2Jü🙂\n", stream) == text


class Admin(worker_service_pb2_grpc.WorkerServiceServicer, job_service_pb2_grpc.JobServiceServicer):  # type: ignore[misc]
    """Answers with what the goldens hold; anything else is refused."""

    def CreateWorker(self, request: worker_service_pb2.CreateWorkerRequest, context: Any) -> Any:
        if request.spec.url == "grpc://taken:1":
            error = TandemError(Reason.WORKER_ALREADY_EXISTS, "a live worker has it", metadata={"worker_id": W1})
            status = encode(error)
            assert status.code is Code.ALREADY_EXISTS
            context.set_trailing_metadata(status.trailers)
            context.abort(grpc.StatusCode.ALREADY_EXISTS, status.message)
        return worker_service_pb2.CreateWorkerResponse(worker=WORKERS[0], job=JOB)

    def ListWorkers(self, request: worker_service_pb2.ListWorkersRequest, context: Any) -> Any:
        if not request.page_token:
            return worker_service_pb2.ListWorkersResponse(workers=WORKERS[:1], next_page_token="2")
        return worker_service_pb2.ListWorkersResponse(workers=WORKERS[1:])

    def GetJob(self, request: job_service_pb2.GetJobRequest, context: Any) -> Any:
        return job_service_pb2.GetJobResponse(job=JOB)


class Router(router_service_pb2_grpc.RouterServiceServicer):  # type: ignore[misc]
    """Answers every request with two pieces per choice."""

    def Generate(self, request: Any, context: Any) -> Iterator[Any]:
        for index in range(max(1, request.sampling.n)):
            is_tokens = request.WhichOneof("input") == "token_ids"
            for piece in ("one ", "two"):
                chunk: dict[str, Any] = {"index": index}
                chunk |= {"tokenIds": list(request.token_ids.ids)} if is_tokens else {"text": [piece]}
                yield message(generate_result_pb2.GenerateResponse, chunk=chunk)
        yield generate_result_pb2.GenerateResponse(finished=FINISHED)


@contextmanager
def listening(add: Callable[[grpc.Server], None]) -> Iterator[str]:
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        add(server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(0).wait()


@pytest.fixture
def admin() -> Iterator[str]:
    servicer = Admin()

    def add(server: grpc.Server) -> None:
        worker_service_pb2_grpc.add_WorkerServiceServicer_to_server(servicer, server)
        job_service_pb2_grpc.add_JobServiceServicer_to_server(servicer, server)

    with listening(add) as address:
        yield address


@pytest.fixture
def router() -> Iterator[str]:
    with listening(lambda server: router_service_pb2_grpc.add_RouterServiceServicer_to_server(Router(), server)) as at:
        yield at


def run(*arguments: str, env: dict[str, str] | None = None) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments), env=env)
    return result.exit_code, result.stdout, result.stderr


def test_list_shows_every_page(admin: str) -> None:
    assert run("workers", "list", "--admin", admin) == (0, f"{WORKERS_TABLE}\n", "")


def test_address_is_taken_from_the_environment(admin: str) -> None:
    assert run("workers", "list", env={"TANDEM_ADMIN_ADDRESS": admin})[0] == 0


def test_list_as_json_is_the_message(admin: str) -> None:
    _, out, _ = run("workers", "list", "-o", "json", "--admin", admin)
    parsed = json_format.Parse(out, worker_service_pb2.ListWorkersResponse())
    assert [worker.id for worker in parsed.workers] == [W1, W2]


def test_add_prints_the_id_alone(admin: str) -> None:
    assert run("workers", "add", "grpc://a:1", "--type", "prefill", "--admin", admin) == (0, f"{W1}\n", "")


def test_add_that_waits_fails_with_its_job(admin: str) -> None:
    code, out, err = run("workers", "add", "grpc://a:1", "--wait", "--admin", admin)
    assert (code, out, err.splitlines()[-1]) == (1, f"{W1}\n", "RUNTIME_NOT_DETECTED: nothing answers")


def test_refusal_is_one_line_with_the_reason_and_one_with_what_to_do(admin: str) -> None:
    code, out, err = run("workers", "add", "grpc://taken:1", "--admin", admin)
    assert (code, out, err) == (
        1,
        "",
        "WORKER_ALREADY_EXISTS: a live worker has it\n  Use the worker_id in the error's metadata.\n",
    )


def test_nobody_at_the_address_is_exit_code_3() -> None:
    code, _, err = run("workers", "list", "--admin", "127.0.0.1:1")
    assert (code, err.splitlines()[0]) == (3, "UNREACHABLE: no router answers at 127.0.0.1:1.")


@pytest.mark.parametrize(
    "arguments",
    [("generate",), ("generate", "x", "--tokens", "1"), ("generate", "--tokens", "a"), ("workers", "add"), ("nope",)],
)
def test_wrong_usage_is_exit_code_2(arguments: tuple[str, ...]) -> None:
    assert run(*arguments)[0] == 2


def test_job_is_shown_with_its_steps(admin: str) -> None:
    assert run("jobs", "get", J1, "--admin", admin) == (0, f"{JOB_TEXT}\n", "")


def test_generate_streams_to_stdout_and_sums_up_on_stderr(router: str) -> None:
    assert run("generate", "hi", "--router", router) == (0, "one two\n", f"{SUMMARY}\n")


def test_generate_numbers_several_answers(router: str) -> None:
    assert run("generate", "hi", "-n", "2", "--router", router)[1] == "[0] one two\n[1] one two\n"


def test_generate_of_token_ids_prints_token_ids(router: str) -> None:
    assert run("generate", "--tokens", "5,6", "--router", router)[1] == "5 6 5 6 \n"


def test_show_settings_names_value_and_source() -> None:
    _, out, _ = run("serve", "--set", "max_in_flight=7", "--show-settings", env={"TANDEM_LISTEN": "127.0.0.1:9"})
    lines = [line.split() for line in out.splitlines()]
    assert ["max_in_flight", "7", "flag"] in lines
    assert ["listen", "127.0.0.1:9", "env", "TANDEM_LISTEN"] in lines
    assert ["rooms.slot", "0", "default"] in lines


@pytest.mark.parametrize("pair", ["nope=1", "listen", "max_in_flight=x"])
def test_bad_setting_is_wrong_usage(pair: str) -> None:
    code, _, err = run("serve", "--set", pair)
    assert (code, err.startswith("SETTINGS: ")) == (2, True)


def test_engine_s_flags_are_the_engine_s(capfd: pytest.CaptureFixture[str]) -> None:
    code, _, _ = run("engine", "--protocol", "nope")
    assert code == 2, sys.exc_info()

"""An operator with `buf curl` and nothing else runs a fleet's whole life: no file of ours, reflection alone."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.processes import EngineProcess, RouterProcess, eventually

pytestmark = pytest.mark.e2e

BUF = Path(sys.executable).parent / "buf"
WORKERS, JOBS, PAIRS = "tandem.v1.WorkerService", "tandem.v1.JobService", "tandem.v1.PairService"
GENERATE = "tandem.v1.RouterService/Generate"
QUESTION = {"text": "12 + 34 =", "sampling": {"temperature": 0}}


class Curl:
    """`buf curl` against one address."""

    def __init__(self, address: str, folder: Path) -> None:
        self._address = address
        self._folder = folder

    def __call__(self, method: str, **request: Any) -> Any:
        """The one answer; the call must succeed."""
        answers = self.stream(method, **request)
        assert len(answers) == 1
        return answers[0]

    def stream(self, method: str, **request: Any) -> list[Any]:
        """Every message of the answer; the call must succeed."""
        done = self._run(method, request)
        assert done.returncode == 0, done.stderr
        decoder, rest, messages = json.JSONDecoder(), done.stdout.strip(), []
        while rest:
            message, end = decoder.raw_decode(rest)
            messages.append(message)
            rest = rest[end:].strip()
        return messages

    def refusal(self, method: str, **request: Any) -> tuple[str, str]:
        """Code and message; the call must fail."""
        done = self._run(method, request)
        assert done.returncode != 0, done.stdout
        error = json.loads(done.stderr)
        return error["code"], error["message"]

    def _run(self, method: str, request: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        flags = ["--protocol", "grpc", "--http2-prior-knowledge", "-d", json.dumps(request)]
        command = [BUF, "curl", *flags, f"http://{self._address}/{method}"]
        # In an empty folder: no schema of ours is found on disk.
        return subprocess.run(command, cwd=self._folder, capture_output=True, text=True, timeout=60)


Fleet = tuple[Curl, Curl, list[EngineProcess]]


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """(clients' listener, operators' listener, a prefill and a decode engine that nobody registered)."""
    with contextlib.ExitStack() as stack:
        router = RouterProcess()
        stack.callback(router.stop)
        prefill = EngineProcess("vllm", "prefill")
        stack.callback(prefill.stop)
        decode = EngineProcess("vllm", "decode")
        stack.callback(decode.stop)
        clients, operators = (Curl(router.where[name], tmp_path) for name in ("listen", "admin_listen"))
        yield clients, operators, [prefill, decode]


def snapshot(operators: Curl, **request: Any) -> dict[str, str]:
    """Status by worker id, as a watch that ends by itself shows it."""
    events = operators.stream(f"{WORKERS}/WatchWorkers", stopAfterSynced=True, **request)
    assert [event["type"] for event in events] == [
        *(["WATCH_EVENT_TYPE_SNAPSHOT"] * (len(events) - 1)),
        "WATCH_EVENT_TYPE_SYNCED",
    ]
    return {event["worker"]["id"]: event["worker"]["status"] for event in events[:-1]}


def register(operators: Curl, engines: list[EngineProcess]) -> list[str]:
    ids = []
    for engine in engines:
        spec = {"url": f"grpc://{engine.address}", "workerType": f"WORKER_TYPE_{engine.mode.upper()}"}
        created = operators(f"{WORKERS}/CreateWorker", spec=spec)
        # WatchJob ends by itself with the job's final state.
        last = operators.stream(f"{JOBS}/WatchJob", jobId=created["job"]["id"])[-1]["job"]
        assert last["state"] == "JOB_STATE_SUCCEEDED", last
        ids.append(created["worker"]["id"])
    return ids


def test_a_fleet_lives_and_ends_by_reflection_alone(fleet: Fleet) -> None:
    clients, operators, engines = fleet
    prefill, decode = register(operators, engines)
    assert snapshot(operators) == {prefill: "WORKER_STATUS_READY", decode: "WORKER_STATUS_READY"}

    plan = operators(f"{PAIRS}/PlanPair", request=QUESTION)["plan"]
    assert plan["servingMode"] == "SERVING_MODE_DISAGGREGATED"
    assert (plan["prefill"]["workerId"], plan["decode"]["workerId"]) == (prefill, decode)

    *chunks, last = clients.stream(GENERATE, **QUESTION)
    assert "".join(text for message in chunks for text in message["chunk"].get("text", [])) == " 46"
    assert last["finished"]["servedBy"]["handshake"] == "HANDSHAKE_KIND_HANDOFF"

    drained = operators(f"{WORKERS}/DrainWorker", workerId=decode, reason="maintenance")
    assert drained["worker"]["status"] == "WORKER_STATUS_DRAINING"
    assert snapshot(operators, filter={"statuses": ["WORKER_STATUS_DRAINING"]}) == {decode: "WORKER_STATUS_DRAINING"}
    code, message = clients.refusal(GENERATE, **QUESTION)
    assert code == "unavailable"
    assert message.startswith("NO_READY_WORKER: ")

    operators(f"{WORKERS}/UndrainWorker", workerId=decode)
    eventually(
        lambda: snapshot(operators)[decode] == "WORKER_STATUS_READY", within_s=15, what="the undrained worker is READY"
    )
    assert clients.stream(GENERATE, **QUESTION)[-1]["finished"]["choices"][0]["reason"] == "FINISH_REASON_STOP"

    for worker_id in (prefill, decode):
        job = operators(f"{WORKERS}/DeleteWorker", workerId=worker_id, drainTimeout="5s")["job"]
        assert operators.stream(f"{JOBS}/WatchJob", jobId=job["id"])[-1]["job"]["state"] == "JOB_STATE_SUCCEEDED"
    assert snapshot(operators) == {}
    assert operators.refusal(f"{WORKERS}/GetWorker", workerId=decode)[0] == "not_found"


def test_health_knows_every_name_on_both_listeners(fleet: Fleet) -> None:
    clients, operators, engines = fleet
    register(operators, engines)
    names = ["", "liveness", "readiness", "model/tandem-demo", "tandem.v1.RouterService", WORKERS, JOBS, PAIRS]
    serving = {name: {"status": "SERVING"} for name in names}

    def all_serve(curl: Curl) -> bool:
        statuses = curl("grpc.health.v1.Health/List")["statuses"]
        return {name: statuses.get(name) for name in names} == serving

    for curl in (clients, operators):
        # The board is brought up to date by a heartbeat, a few times per second.
        eventually(lambda curl=curl: all_serve(curl), within_s=15, what="every name is SERVING")
        assert curl("grpc.health.v1.Health/Check", service="model/tandem-demo") == {"status": "SERVING"}


def test_a_refused_field_is_named(fleet: Fleet) -> None:
    _, operators, _ = fleet
    code, message = operators.refusal(f"{WORKERS}/CreateWorker", spec={"url": "grpc://127.0.0.1:1", "priority": 5000})
    assert code == "invalid_argument"
    assert message.startswith("INVALID_REQUEST: spec.priority: ")

"""A Node client runs a fleet's whole life, with our .proto files and with nothing but reflection."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.node_packages import NODE, installed
from tests.e2e.processes import EngineProcess, RouterProcess

pytestmark = pytest.mark.e2e

HERE = Path(__file__).parent / "node"
PROTOS = Path(__file__).parents[2] / "proto"
LOCK = HERE / "package-lock.json"


@pytest.fixture(scope="module", params=["files", "reflection"])
def saw(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the client printed."""
    # Node looks for packages beside the program, so the program goes beside the packages.
    place = tmp_path_factory.mktemp("node")
    for program in HERE.glob("*.mjs"):
        shutil.copy(program, place)
    (place / "node_modules").symlink_to(installed(HERE))
    with contextlib.ExitStack() as stack:
        router = RouterProcess()
        stack.callback(router.stop)
        prefill = EngineProcess("sglang", "prefill")
        stack.callback(prefill.stop)
        decode = EngineProcess("sglang", "decode")
        stack.callback(decode.stop)
        addresses = [router.where["listen"], router.where["admin_listen"], PROTOS, prefill.address, decode.address]
        command = [NODE, place / "client.mjs", request.param, *addresses]
        # A proxy of the environment is not for loopback.
        environ = {**os.environ, "no_grpc_proxy": "127.0.0.1"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environ)
    assert done.returncode == 0, done.stderr
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed


def test_the_lock_names_no_address() -> None:
    assert re.findall(r"\w+://", LOCK.read_text(encoding="utf-8")) == []


def test_created_workers_are_pending(saw: dict[str, Any]) -> None:
    assert saw["created"] == [{"status": "WORKER_STATUS_PENDING", "generation": "1"}] * 2


def test_a_second_worker_at_one_url_is_refused_with_details(saw: dict[str, Any]) -> None:
    assert saw["again"]["code"] == 6
    assert saw["again"]["message"].startswith(("WORKER_CREATE_IN_PROGRESS: ", "WORKER_ALREADY_EXISTS: "))
    assert saw["again"]["details"] == 1


def test_the_watch_tells_when_both_are_ready(saw: dict[str, Any]) -> None:
    assert saw["watched"]["ready"] == 2
    assert "WATCH_EVENT_TYPE_SYNCED" in saw["watched"]["types"]


def test_revisions_never_go_back(saw: dict[str, Any]) -> None:
    revisions = [int(revision) for revision in saw["revisions"]]
    assert revisions == sorted(revisions)


def test_both_registrations_succeeded(saw: dict[str, Any]) -> None:
    assert saw["registered"] == ["JOB_STATE_SUCCEEDED"] * 2


def test_health_is_serving(saw: dict[str, Any]) -> None:
    assert set(saw["health"].values()) == {"SERVING"}


def test_the_plan_is_a_pair_of_both(saw: dict[str, Any]) -> None:
    assert saw["plan"] == {
        "serving_mode": "SERVING_MODE_DISAGGREGATED",
        "prefill_is_ours": True,
        "decode_is_ours": True,
        "failure": None,
    }


def test_the_answer_is_streamed_through_the_pair(saw: dict[str, Any]) -> None:
    assert saw["answer"]["chunks"] > 1
    assert saw["answer"]["text"].strip() == "hello 🙂"
    assert saw["answer"]["reasons"] == ["FINISH_REASON_STOP"]
    assert saw["answer"]["handshake"] == "HANDSHAKE_KIND_RENDEZVOUS"
    assert saw["answer"]["attempts"] == 1


def test_a_drain_is_a_job_that_ends(saw: dict[str, Any]) -> None:
    assert saw["drained"] == {
        "status": "WORKER_STATUS_DRAINING",
        "reason": "a new kernel",
        "job": "JOB_STATE_SUCCEEDED",
    }


def test_without_its_decode_worker_the_model_is_unavailable(saw: dict[str, Any]) -> None:
    assert saw["without_decode"]["code"] == 14
    assert saw["without_decode"]["message"].startswith("NO_READY_WORKER: ")


def test_undrain_brings_the_worker_back(saw: dict[str, Any]) -> None:
    assert saw["undrained"] == "WORKER_STATUS_READY"


def test_deleted_workers_are_gone(saw: dict[str, Any]) -> None:
    assert saw["deleted"] == ["JOB_STATE_SUCCEEDED"] * 2
    assert saw["after"]["code"] == 5
    assert saw["after"]["message"].startswith("WORKER_NOT_FOUND: ")
    assert saw["left"] == ["WATCH_EVENT_TYPE_SYNCED"]

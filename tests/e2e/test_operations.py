"""Every shell line of docs/operations.md, in its order and in one shell, does what the text around it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import trustme
from tests.e2e.documents import ROOT, blocks, on_free_ports, run_blocks

pytestmark = pytest.mark.e2e

PAGE = ROOT / "docs/operations.md"
PORTS = ("50051", "50052", "50053", "7001", "7002", "7003", "7004", "7009")


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the lines of each section printed, by the section's heading."""
    sections = [
        heading
        for part in re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
        for heading in [part.partition("\n")[0]] * len(re.findall(r"^```sh$", part, re.MULTILINE))
    ]
    scripts, port = on_free_ports(blocks(PAGE), PORTS)
    environ = {
        "TANDEM_ADDRESS": f"127.0.0.1:{port['50051']}",
        "TANDEM_ADMIN_ADDRESS": f"127.0.0.1:{port['50052']}",
        "TANDEM_HEALTH_ADDRESS": f"127.0.0.1:{port['50053']}",
    }
    folder = tmp_path_factory.mktemp("operations")
    _certify(folder)
    outputs = run_blocks(scripts, cwd=folder, environ=environ, timeout_s=240)
    found: dict[str, str] = {}
    for section, output in zip(sections, outputs, strict=True):
        found[section] = found.get(section, "") + output
    return found


def _certify(folder: Path) -> None:
    """The files of an authority that the page takes for granted."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    for name, identity in (("engine", "127.0.0.1"), ("router", "router.example"), ("renewed", "router.example")):
        issued = authority.issue_cert(identity)
        issued.private_key_pem.write_to_path(str(folder / f"{name}.key"))
        for part in issued.cert_chain_pems:
            part.write_to_path(str(folder / f"{name}.pem"), append=True)


def test_settings_are_shown_with_their_source(said: dict[str, str]) -> None:
    assert re.search(r"^shutdown_grace_s +\S+ +default$", said["Start a router and engines"], re.MULTILINE)


def test_added_workers_are_ready_and_answer(said: dict[str, str]) -> None:
    added = said["Add workers"]
    assert len(re.findall(r"\bREADY\b", added)) >= 2
    assert "activate succeeded" in added
    assert "tandem-demo" in added
    assert "hello" in added


def test_a_second_spelling_of_a_url_is_refused(said: dict[str, str]) -> None:
    assert "WORKER_ALREADY_EXISTS: " in said["Add workers"]
    assert "refused with exit code 1" in said["Add workers"]


def test_a_worker_that_does_not_answer_says_so(said: dict[str, str]) -> None:
    waiting = said["See why a worker is not ready"]
    assert "PENDING" in waiting
    assert "connect" in waiting
    assert "WORKER_UNREACHABLE" in waiting
    assert '"status": "WORKER_STATUS_PENDING"' in waiting


def test_its_registration_goes_on_once_it_answers(said: dict[str, str]) -> None:
    assert "activate succeeded" in said["See why a worker is not ready"]


def test_a_failed_job_says_where_and_why(said: dict[str, str]) -> None:
    failed = said["Read a job that failed"]
    assert "failed with exit code 1" in failed
    assert "connect failed after 2 tries" in failed
    assert re.search(r"\bFAILED\b", failed)


def test_a_watch_ends_by_itself_after_synced(said: dict[str, str]) -> None:
    watched = said["Watch"]
    assert "SYNCED" in watched
    assert watched.count('"WORKER_STATUS_READY"') == 3
    assert '"WATCH_EVENT_TYPE_SYNCED"' in watched


def test_a_plan_names_the_pair(said: dict[str, str]) -> None:
    assert '"SERVING_MODE_DISAGGREGATED"' in said["Ask what a request would do"]


def test_requests_go_on_while_a_worker_is_drained(said: dict[str, str]) -> None:
    drained = said["Take a worker out for maintenance"]
    assert "drain succeeded" in drained
    assert "DRAINING" in drained
    assert "still here" in drained


def test_an_undrained_worker_with_a_new_process_is_ready(said: dict[str, str]) -> None:
    assert re.search(r"\bREADY\b", said["Take a worker out for maintenance"].rstrip().splitlines()[-1])


def test_a_replaced_worker_is_in_effect_as_a_new_epoch(said: dict[str, str]) -> None:
    assert re.search(r"^activate succeeded: in effect as epoch \d+$", said["Change a worker"], re.MULTILINE)


def test_a_stale_generation_changes_nothing(said: dict[str, str]) -> None:
    assert "GENERATION_MISMATCH: " in said["Change a worker"]
    assert "refused with exit code 1" in said["Change a worker"]


def test_an_adapter_that_engines_do_not_find_is_refused_in_their_words(said: dict[str, str]) -> None:
    loading = said["Load an adapter"]
    assert "ADAPTER_NOT_LOADABLE: " in loading
    assert "/adapters/german" in loading
    assert "ADAPTER_NOT_FOUND: " in loading
    assert loading.count("exit code 1") == 2


def test_caches_are_flushed_and_a_trace_is_left(said: dict[str, str]) -> None:
    operated = said["Flush caches and take profiles"]
    assert len(re.findall(r"^[0-9a-f-]{36}  yes\b", operated, re.MULTILINE)) == 5
    assert re.search(r"^can +.*adapters, flush cache, profile", operated, re.MULTILINE)
    assert re.search(r"\.json\S*$", operated.strip(), re.MULTILINE)


def test_a_key_is_stored_and_not_shown(said: dict[str, str]) -> None:
    keys = said["Keys and certificates of workers"]
    assert re.search(r"^credentials +stored$", keys, re.MULTILINE)
    assert "made-up" not in keys


def test_a_worker_is_reached_over_mutual_tls_and_its_certificate_rotated(said: dict[str, str]) -> None:
    secured = said["Keys and certificates of workers"]
    assert re.search(r"^url +grpcs://127\.0\.0\.1:\d+$", secured, re.MULTILINE)
    assert "activate succeeded: in effect as epoch 2" in secured
    assert secured.count("remove succeeded") == 2


def test_an_untrusted_worker_is_refused_with_the_side_that_did(said: dict[str, str]) -> None:
    secured = said["Keys and certificates of workers"]
    assert "WORKER_TLS_FAILED" in secured
    assert "failed with exit code 1" in secured
    assert "PRIVATE KEY" not in secured


def test_a_deleted_worker_is_gone(said: dict[str, str]) -> None:
    deleted = said["Delete a worker"]
    assert "remove succeeded" in deleted
    assert "WORKER_NOT_FOUND: " in deleted
    assert len(re.findall(r"\bREADY\b", deleted)) == 2


def test_probes_are_answered_on_the_health_listener(said: dict[str, str]) -> None:
    assert said["Probes and meshes"].count('"status": "SERVING"') == 3


def test_sigterm_ends_the_router_in_order(said: dict[str, str]) -> None:
    stopped = said["Stop the router"]
    assert "UNREACHABLE: " in stopped
    assert "nobody answers: exit code 3" in stopped


def test_no_shell_line_is_left_out() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert set(re.findall(r"^```(\w+)$", text, re.MULTILINE)) == {"sh", "yaml"}

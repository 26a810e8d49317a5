"""A worker's spec from flags and files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from tests.cli.fakes import FakeRouter, run
from tests.cli.fleet import furnish
from tests.cli.things import W1, WORKERS

from tandem.v1 import worker_service_pb2


def sent(fake: FakeRouter, rpc: str) -> dict[str, Any]:
    """The one request of an rpc as JSON."""
    (request,) = fake.requests(f"WorkerService/{rpc}")
    fields: dict[str, Any] = json_format.MessageToDict(request)
    return fields


@pytest.mark.parametrize(
    ("settings", "spec"),
    [
        (["priority=80"], {"priority": 80}),
        (["cost=1.5", "kv_connector=NixlConnector"], {"cost": 1.5, "kvConnector": "NixlConnector"}),
        (["health.timeout=2s", "health.success_threshold=1"], {"health": {"timeout": "2s", "successThreshold": 1}}),
        (["health.disable_health_check=true"], {"health": {"disableHealthCheck": True}}),
        (["runtime_type=vllm"], {"runtimeType": "RUNTIME_TYPE_VLLM"}),
        (["kv_role=KV_ROLE_BOTH"], {"kvRole": "KV_ROLE_BOTH"}),
        (["models=[{id: a, aliases: [b]}]"], {"models": [{"id": "a", "aliases": ["b"]}]}),
        (["load_monitor_interval=0.5s"], {"loadMonitorInterval": "0.500s"}),
        (["bootstrap_host=010"], {"bootstrapHost": "010"}),
    ],
)
def test_any_field_is_set_by_its_path(fake: FakeRouter, settings: list[str], spec: dict[str, Any]) -> None:
    furnish(fake)
    flags = [part for setting in settings for part in ("--set", setting)]
    run("workers", "update", "1a", *flags)
    asked = sent(fake, "UpdateWorker")
    assert asked["spec"] == spec
    (request,) = fake.requests("WorkerService/UpdateWorker")
    assert list(request.update_mask.paths) == [setting.partition("=")[0] for setting in settings]


def test_null_names_the_field_and_leaves_it_out(fake: FakeRouter) -> None:
    furnish(fake)
    run("workers", "update", "1a", "--set", "priority=null")
    (asked,) = fake.requests("WorkerService/UpdateWorker")
    assert (asked.spec.HasField("priority"), list(asked.update_mask.paths)) == (False, ["priority"])


def test_word_that_an_enum_does_not_have_is_answered_with_those_that_it_has(fake: FakeRouter) -> None:
    # As vLLM spells it.
    code, _, err = run("workers", "add", "grpc://a:1", "--set", "kv_role=kv_producer")
    assert code == 2
    assert "kv_role: 'kv_producer' is none of producer, consumer, both" in err
    assert fake.requests("WorkerService/CreateWorker") == []


def test_labels_are_merged_and_removed(fake: FakeRouter) -> None:
    furnish(fake)
    run("workers", "update", "1a", "--label", "zone=b", "--label", "a=b=c", "--remove-label", "old")
    assert sent(fake, "UpdateWorker") == {
        "workerId": W1,
        "spec": {"labels": {"zone": "b", "a": "b=c"}},
        "updateMask": "labels",
        "removeLabels": ["old"],
    }


def test_flags_of_add_win_over_its_file(fake: FakeRouter, tmp_path: Path) -> None:
    furnish(fake)
    file = tmp_path / "spec.yaml"
    file.write_text("url: grpc://a:1\nworkerType: WORKER_TYPE_DECODE\npriority: 10\nlabels: {zone: a}\n")
    run("workers", "add", "-f", str(file), "--type", "prefill", "--runtime", "sglang", "--bootstrap-port", "9000")
    assert sent(fake, "CreateWorker")["spec"] == {
        "url": "grpc://a:1",
        "workerType": "WORKER_TYPE_PREFILL",
        "runtimeType": "RUNTIME_TYPE_SGLANG",
        "bootstrapPort": 9000,
        "priority": 10,
        "labels": {"zone": "a"},
    }


def test_file_may_be_json_on_stdin_with_names_as_in_the_proto(fake: FakeRouter) -> None:
    furnish(fake)
    assert run("workers", "add", "-f", "-", stdin=b'{"url": "grpc://a:1", "worker_type": 2}')[0] == 0
    assert sent(fake, "CreateWorker")["spec"] == {"url": "grpc://a:1", "workerType": "WORKER_TYPE_PREFILL"}


@pytest.mark.parametrize("output", ["yaml", "json"])
def test_worker_that_was_read_can_be_put_back(fake: FakeRouter, tmp_path: Path, output: str) -> None:
    furnish(fake)
    file = tmp_path / "worker"
    file.write_text(run("workers", "get", "1a", "-o", output)[1])
    assert run("workers", "replace", "1a", "-f", str(file))[0] == 0
    (asked,) = fake.requests("WorkerService/ReplaceWorker")
    assert (asked.spec, asked.expected_generation) == (WORKERS[0].spec, WORKERS[0].generation)


def test_generation_on_the_command_line_wins_over_the_file_s(fake: FakeRouter, tmp_path: Path) -> None:
    furnish(fake)
    file = tmp_path / "worker"
    file.write_text(run("workers", "get", "1a", "-o", "yaml")[1])
    run("workers", "replace", "1a", "-f", str(file), "--generation", "9")
    assert sent(fake, "ReplaceWorker")["expectedGeneration"] == "9"


def test_replacement_takes_the_endpoint_from_the_old_spec(fake: FakeRouter) -> None:
    furnish(fake)
    run("workers", "replace", "1a", "--type", "decode")
    assert sent(fake, "ReplaceWorker") == {
        "workerId": W1,
        "spec": {"url": "grpc://a:1", "workerType": "WORKER_TYPE_DECODE"},
    }


@pytest.mark.parametrize("text", ["a: [", "just text", "nope: 1", "url: [1]", "- 1"])
def test_file_that_is_no_spec_is_wrong_usage(fake: FakeRouter, tmp_path: Path, text: str) -> None:
    file = tmp_path / "spec"
    file.write_text(text)
    code, _, err = run("workers", "add", "-f", str(file))
    assert (code, "--file" in err, fake.asked) == (2, True, [])


def test_secrets_come_from_files_and_never_from_the_line(fake: FakeRouter, tmp_path: Path) -> None:
    furnish(fake)
    files = {name: tmp_path / name for name in ("key", "ca", "certificate", "private")}
    for name, file in files.items():
        file.write_text(f"{name}\n")
    run(
        *("workers", "add", "grpc://a:1", "--api-key-file", str(files["key"]), "--worker-tls-ca", str(files["ca"])),
        *("--worker-tls-certificate", str(files["certificate"]), "--worker-tls-key", str(files["private"])),
    )
    (asked,) = fake.requests("WorkerService/CreateWorker")
    expected = worker_service_pb2.CreateWorkerRequest().credentials
    expected.api_key = "key"
    expected.tls_ca_pem, expected.tls_certificate_pem = b"ca\n", b"certificate\n"
    expected.tls_private_key_pem = b"private\n"
    assert asked.credentials == expected


def test_no_secret_named_sends_none(fake: FakeRouter) -> None:
    furnish(fake)
    run("workers", "add", "grpc://a:1")
    assert "credentials" not in sent(fake, "CreateWorker")

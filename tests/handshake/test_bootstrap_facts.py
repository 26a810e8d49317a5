"""Where decode workers knock: stated, else found, else the host of the URL and port 8998; and who is knocked at."""

from __future__ import annotations

from typing import Any

import pytest

from tandem_router.model.pairing import BootstrapEndpoint, HandshakeKind
from tandem_router.model.settings import RuntimeSettings
from tandem_router.model.spec import RuntimeType, WorkerSpec, WorkerType
from tandem_router.model.worker import WorkerFacts
from tandem_router.runtime.facts import EffectiveFacts, effective_facts

ROOMY = WorkerFacts(RuntimeType.SGLANG, "m", handshake=HandshakeKind.RENDEZVOUS, kv_connector="mooncake")
MOONCAKE = WorkerFacts(RuntimeType.VLLM, "m", handshake=HandshakeKind.HANDOFF, kv_connector="MooncakeConnector")
NIXL = WorkerFacts(RuntimeType.VLLM, "m", handshake=HandshakeKind.HANDOFF, kv_connector="NixlConnector")


def effective(
    found: WorkerFacts, url: str = "grpc://10.0.0.7:50051", worker_type: WorkerType = WorkerType.PREFILL, **spec: Any
) -> EffectiveFacts:
    settings = RuntimeSettings()
    stated = WorkerSpec(url=url, worker_type=worker_type, **spec)
    return effective_facts(stated, url, found, default_bootstrap_port=settings.default_bootstrap_port)


@pytest.mark.parametrize("found", [ROOMY, MOONCAKE], ids=["rendezvous", "mooncake"])
@pytest.mark.parametrize(
    ("url", "spec", "endpoint"),
    [
        ("grpc://10.0.0.7:50051", {}, BootstrapEndpoint("10.0.0.7", 8998)),
        ("grpc://[::1]:50051", {}, BootstrapEndpoint("::1", 8998)),
        ("grpcs://prefill.example:50051", {"bootstrap_port": 9001}, BootstrapEndpoint("prefill.example", 9001)),
        ("grpc://10.0.0.7:50051", {"bootstrap_host": "10.1.0.7"}, BootstrapEndpoint("10.1.0.7", 8998)),
    ],
    ids=["default", "ipv6", "port stated", "host stated"],
)
def test_a_prefill_worker_is_knocked_at_where_it_is_stated_to_be_else_at_its_urls_host(
    found: WorkerFacts, url: str, spec: dict[str, Any], endpoint: BootstrapEndpoint
) -> None:
    made = effective(found, url, **spec)
    assert made.facts.bootstrap == endpoint
    assert made.needs_bootstrap


@pytest.mark.parametrize(
    ("found", "worker_type"),
    [(NIXL, WorkerType.PREFILL), (MOONCAKE, WorkerType.DECODE), (ROOMY, WorkerType.DECODE)],
    ids=["nixl", "mooncake decode", "rendezvous decode"],
)
def test_nobody_knocks_at_other_workers(found: WorkerFacts, worker_type: WorkerType) -> None:
    made = effective(found, worker_type=worker_type)
    assert made.facts.bootstrap is None
    assert not made.needs_bootstrap


def test_a_stated_connector_decides_whether_decode_knocks() -> None:
    assert effective(NIXL, kv_connector="MooncakeConnector").needs_bootstrap
    assert not effective(MOONCAKE, kv_connector="NixlConnector").needs_bootstrap


def test_a_stated_engine_id_goes_before_the_one_that_was_found() -> None:
    made = effective(MOONCAKE, kv_engine_id="stated")
    assert made.facts.kv_engine_id == "stated"

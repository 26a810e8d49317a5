"""kv_transfer_params: relayed verbatim, and never such as kill or hang an engine."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from legs import AGGREGATE, HANDOFF_DECODE, HANDOFF_PREFILL, MOONCAKE, MOONCAKE_DECODE, MOONCAKE_PREFILL

from tandem_router.engines.vllm import VllmDialect
from tandem_router.errors import Reason, TandemError
from tandem_router.model.pairing import HandshakeKind, KvRole, LegRole, TransferParams
from tandem_router.model.request import LegRequest
from tandem_router.model.spec import RuntimeType
from tandem_router.model.worker import WorkerFacts

NIXL = WorkerFacts(RuntimeType.VLLM, "m", kv_connector="NixlConnector")
OTHER = WorkerFacts(RuntimeType.VLLM, "m", kv_connector="LMCacheConnectorV1")


def sent(leg: LegRequest, facts: WorkerFacts | None) -> str:
    text: str = VllmDialect().generate_request(leg, facts).kv_transfer_params_json
    return text


def decode(text: str) -> LegRequest:
    return replace(HANDOFF_DECODE, handoff=TransferParams(text))


def refused(leg: LegRequest, facts: WorkerFacts | None, reason: Reason = Reason.INTERNAL_ERROR) -> None:
    with pytest.raises(TandemError) as caught:
        VllmDialect().generate_request(leg, facts)
    assert caught.value.reason is reason


@pytest.mark.parametrize("facts", [None, NIXL], ids=["unknown", "nixl"])
@pytest.mark.parametrize(
    "text",
    [
        '{"do_remote_prefill":true}',
        '{"do_remote_prefill":true,"remote_block_ids":null}',
        '{"do_remote_prefill":true,"remote_block_ids":[]}',
        '{"do_remote_prefill":true,"remote_block_ids":7}',
        "not json",
        "[]",
        "",
        "[" * 100_000,
    ],
    ids=["absent", "null", "none", "number", "no-json", "no-object", "empty", "deep"],
)
def test_decode_that_would_kill_the_engine_is_never_built(text: str, facts: WorkerFacts | None) -> None:
    refused(decode(text), facts, Reason.KV_TRANSFER_FAILED)


@pytest.mark.parametrize("facts", [None, NIXL], ids=["unknown", "nixl"])
def test_prompt_shorter_than_a_block_hands_over_the_block_that_it_began(facts: WorkerFacts | None) -> None:
    where = '"remote_engine_id":"p0","remote_request_id":"leg-0","remote_host":"10.0.0.1","remote_port":5600'
    text = f'{{"do_remote_prefill":true,"remote_block_ids":[[7]],{where}}}'
    assert sent(decode(text), facts) == text


@pytest.mark.parametrize("facts", [None, MOONCAKE], ids=["unknown", "mooncake"])
@pytest.mark.parametrize("missing", ["transfer_id", "remote_engine_id", "remote_bootstrap_addr"])
@pytest.mark.parametrize("value", [None, ""], ids=["absent", "empty"])
def test_mooncake_decode_needs_its_three_names(facts: WorkerFacts | None, missing: str, value: str | None) -> None:
    params = json.loads(MOONCAKE_DECODE.json)
    if value is None:
        del params[missing]
    else:
        params[missing] = value
    refused(decode(json.dumps(params)), facts, Reason.KV_TRANSFER_FAILED)


@pytest.mark.parametrize("facts", [None, MOONCAKE], ids=["unknown", "mooncake"])
def test_mooncake_names_a_transfer_instead_of_blocks(facts: WorkerFacts | None) -> None:
    assert sent(replace(HANDOFF_DECODE, handoff=MOONCAKE_DECODE), facts) == MOONCAKE_DECODE.json


def test_mooncake_prefill_sends_the_params_that_its_handshake_made() -> None:
    assert sent(replace(HANDOFF_PREFILL, handoff=MOONCAKE_PREFILL), MOONCAKE) == MOONCAKE_PREFILL.json


def test_mooncake_prefill_without_a_transfer_id_is_never_built() -> None:
    refused(HANDOFF_PREFILL, MOONCAKE)


def test_prefill_leg_never_pulls() -> None:
    refused(replace(HANDOFF_PREFILL, handoff=MOONCAKE_DECODE), None)


def test_connector_that_is_not_known_gets_what_its_prefill_returned() -> None:
    text = '{"do_remote_prefill":true,"whatever":1}'
    assert sent(decode(text), OTHER) == text


def test_connector_that_is_not_known_is_sent_nothing_where_its_prefill_returned_nothing() -> None:
    request = VllmDialect().generate_request(replace(HANDOFF_DECODE, handoff=None), OTHER)
    assert not request.HasField("kv_transfer_params_json")


@pytest.mark.parametrize("facts", [None, NIXL, MOONCAKE], ids=["unknown", "nixl", "mooncake"])
def test_connector_that_must_be_told_is_never_sent_nothing(facts: WorkerFacts | None) -> None:
    refused(replace(HANDOFF_DECODE, handoff=None), facts)


@pytest.mark.parametrize(("role", "kv_role"), [(LegRole.PREFILL, KvRole.CONSUMER), (LegRole.DECODE, KvRole.PRODUCER)])
def test_leg_that_contradicts_the_kv_role_is_never_built(role: LegRole, kv_role: KvRole) -> None:
    handoff = MOONCAKE_PREFILL if role is LegRole.PREFILL else MOONCAKE_DECODE
    leg = replace(AGGREGATE, kind=HandshakeKind.HANDOFF, role=role, handoff=handoff)
    refused(leg, replace(MOONCAKE, kv_role=kv_role))

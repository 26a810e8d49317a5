"""What a NIXL decode must be told besides blocks (vLLM 0.32): without it, it waits for them and keeps its own."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from legs import HANDOFF_DECODE

from tandem_router.engines.vllm import VllmDialect
from tandem_router.errors import Reason, TandemError
from tandem_router.model.pairing import TransferParams
from tandem_router.model.request import LegRequest
from tandem_router.model.spec import RuntimeType
from tandem_router.model.worker import WorkerFacts

WHOLE = {
    "do_remote_prefill": True,
    "do_remote_decode": False,
    "remote_block_ids": [[3, 4]],
    "remote_engine_id": "p0",
    "remote_request_id": "leg-0",
    "remote_host": "10.0.0.1",
    "remote_port": 5600,
    "remote_num_tokens": 18446744073709551617,
    "remote_blocks_expiry_time": 1e-7,
    "tp": {"1": [1.0, None, "é\u2028\\u00e9"]},
}
PULLING = pytest.mark.parametrize("connector", ["NixlConnector", "NixlPullConnector"])


def leg(params: dict[str, object]) -> LegRequest:
    return replace(
        HANDOFF_DECODE, handoff=TransferParams(json.dumps(params, ensure_ascii=False, separators=(" , ", ":")))
    )


def facts(connector: str | None) -> WorkerFacts:
    return WorkerFacts(RuntimeType.VLLM, "m", kv_connector=connector)


@PULLING
def test_whole_params_go_on_to_the_letter(connector: str) -> None:
    """Also numbers that no double holds, spaces, and characters beside their escapes."""
    asked = leg(WHOLE)
    assert isinstance(asked.handoff, TransferParams)
    assert VllmDialect().generate_request(asked, facts(connector)).kv_transfer_params_json == asked.handoff.json


@PULLING
@pytest.mark.parametrize("missing", ["remote_engine_id", "remote_request_id", "remote_host", "remote_port"])
def test_pull_from_nowhere_is_never_built(connector: str, missing: str) -> None:
    with pytest.raises(TandemError, match=missing) as caught:
        VllmDialect().generate_request(leg({name: WHOLE[name] for name in WHOLE if name != missing}), facts(connector))
    assert caught.value.reason is Reason.KV_TRANSFER_FAILED


@pytest.mark.parametrize("connector", ["NixlConnector", None])
@pytest.mark.parametrize("block_ids", [[[]], [[], []]], ids=["one group", "two groups"])
def test_groups_without_a_block_are_no_blocks(connector: str | None, block_ids: list[list[int]]) -> None:
    with pytest.raises(TandemError) as caught:
        VllmDialect().generate_request(leg(WHOLE | {"remote_block_ids": block_ids}), facts(connector))
    assert caught.value.reason is Reason.KV_TRANSFER_FAILED


def test_group_beside_one_without_blocks_is_pulled() -> None:
    """A group of a sliding window may hold none."""
    asked = leg(WHOLE | {"remote_block_ids": [[], [7]]})
    assert VllmDialect().generate_request(asked, facts("NixlConnector")).kv_transfer_params_json


def test_params_that_ask_for_no_pull_go_on_as_they_are() -> None:
    """Without a pull nothing is waited for, so nothing needs to be told."""
    text = '{"do_remote_prefill":false,"what":"ever"}'
    asked = replace(HANDOFF_DECODE, handoff=TransferParams(text))
    assert VllmDialect().generate_request(asked, facts("NixlConnector")).kv_transfer_params_json == text

"""What a Mooncake pair is told, character by character, and what it cannot do without."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from tests.policies.fleet import worker

from tandem_router.engines.vllm import VllmDialect
from tandem_router.handshake.contract import Link
from tandem_router.handshake.mooncake import MooncakeHandshake
from tandem_router.model.pairing import BootstrapEndpoint, HandshakeKind, LegRole, TransferParams
from tandem_router.model.request import LegRequest, Sampling
from tandem_router.model.spec import WorkerType
from tandem_router.model.worker import Worker

SHAKE = MooncakeHandshake()
SAMPLING = Sampling(max_tokens=9, min_tokens=3, stop=("END",), stop_token_ids=(5,), temperature=0.0, n=1)
LEG = LegRequest("leg", HandshakeKind.HANDOFF, LegRole.DECODE, (1, 2, 3), SAMPLING)
XFER = "xfer-0b8f0c2e-6d0f-4d0e-9a53-4f5f4a4f9b11"

PREFILL_JSON = (
    '{"do_remote_decode":true,"do_remote_prefill":false,"transfer_id":"xfer-0b8f0c2e-6d0f-4d0e-9a53-4f5f4a4f9b11"}'
)
DECODE_JSON = (
    '{"do_remote_decode":false,"do_remote_prefill":true,"transfer_id":"xfer-0b8f0c2e-6d0f-4d0e-9a53-4f5f4a4f9b11",'
    '"remote_engine_id":"engine-a","remote_bootstrap_addr":"http://10.0.0.7:8998"}'
)


def source(dp_size: int = 1, host: str = "10.0.0.7", engine_id: str | None = "engine-a") -> Worker:
    endpoint = BootstrapEndpoint(host, 8998)
    return worker(1, WorkerType.PREFILL, dp_size=dp_size, kv_engine_id=engine_id, bootstrap=endpoint)


def params(leg: LegRequest) -> str:
    assert isinstance(leg.handoff, TransferParams)
    return leg.handoff.json


def test_both_legs_are_told_exactly_what_the_connector_reads() -> None:
    link = Link(source(), transfer_id=XFER)
    assert params(SHAKE.prefill_leg(LEG, link)) == PREFILL_JSON
    assert params(SHAKE.decode_leg(LEG, link)) == DECODE_JSON


def test_the_dialect_sends_both_texts_verbatim() -> None:
    link = Link(source(), transfer_id=XFER)
    sent = [
        VllmDialect().generate_request(leg, None) for leg in (SHAKE.prefill_leg(LEG, link), SHAKE.decode_leg(LEG, link))
    ]
    assert [request.kv_transfer_params_json for request in sent] == [PREFILL_JSON, DECODE_JSON]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("dp_size", "rank", "engine_id"),
    [(1, 0, "engine-a"), (2, 0, "engine-a_dp0"), (2, 1, "engine-a_dp1"), (16, 15, "engine-a_dp15")],
)
def test_one_of_several_prefill_ranks_is_named_by_its_suffix(dp_size: int, rank: int, engine_id: str) -> None:
    leg = replace(LEG, dp_rank=7)  # decode's own rank has no part in it
    text = params(SHAKE.decode_leg(leg, Link(source(dp_size), rank, transfer_id=XFER)))
    assert json.loads(text)["remote_engine_id"] == engine_id


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_an_ipv6_bootstrap_host_stands_in_brackets(host: str) -> None:
    text = params(SHAKE.decode_leg(LEG, Link(source(host=host), transfer_id=XFER)))
    assert json.loads(text)["remote_bootstrap_addr"] == "http://[::1]:8998"


def test_prefill_makes_one_token_that_nothing_can_end_early() -> None:
    leg = SHAKE.prefill_leg(LEG, Link(source(), transfer_id=XFER))
    sampling = leg.sampling
    assert (leg.role, leg.is_streaming) == (LegRole.PREFILL, False)
    assert (sampling.n, sampling.max_tokens, sampling.min_tokens) == (1, 1, 0)
    assert (sampling.stop, sampling.stop_token_ids, sampling.ignore_eos) == ((), (), True)


def test_the_prompts_logprobs_are_computed_by_prefill_and_reach_its_wire() -> None:
    asked = replace(LEG, prompt_logprobs=True, output_logprobs=True, top_logprobs=2)
    link = Link(source(), transfer_id=XFER)
    prefill = VllmDialect().generate_request(SHAKE.prefill_leg(asked, link), None)
    decode = VllmDialect().generate_request(SHAKE.decode_leg(asked, link), None)
    # One more than is wanted: this engine counts the token itself among the alternatives.
    assert prefill.sampling_params.prompt_logprobs == 3  # type: ignore[attr-defined]
    assert not prefill.sampling_params.HasField("logprobs")  # type: ignore[attr-defined]
    assert not decode.sampling_params.HasField("prompt_logprobs")  # type: ignore[attr-defined]
    assert decode.sampling_params.logprobs == 3  # type: ignore[attr-defined]


def test_decode_is_the_request_as_the_client_sent_it() -> None:
    assert SHAKE.decode_leg(LEG, Link(source(), transfer_id=XFER)).sampling == SAMPLING


@pytest.mark.parametrize(
    ("link", "missing"),
    [
        (Link(source()), "id of their transfer"),
        (Link(source(engine_id=None), transfer_id=XFER), "engine id"),
        (Link(worker(1, WorkerType.PREFILL, kv_engine_id="e", bootstrap=None), transfer_id=XFER), "bootstrap"),
    ],
    ids=["no transfer id", "no engine id", "no bootstrap"],
)
def test_a_decode_that_would_hang_is_never_built(link: Link, missing: str) -> None:
    with pytest.raises(ValueError, match=missing):
        SHAKE.decode_leg(LEG, link)

"""Every field of both legs of every handshake, of a request that states all of them: what changes, and nothing more."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from tests.engines.legs import FULL
from tests.policies.fleet import worker

from tandem_router.handshake.build import handshake_for
from tandem_router.handshake.contract import Handshake, Link
from tandem_router.model.adapters import AdapterUse
from tandem_router.model.pairing import HandshakeKind, LegRole, Rendezvous, TransferParams
from tandem_router.model.request import Constraint, ConstraintKind, LegRequest, Sampling
from tandem_router.model.spec import WorkerType

SAMPLING = replace(FULL, include_stop=True, constraint=Constraint(ConstraintKind.REGEX, "a+"))
SPARE = replace(SAMPLING, n=1, max_tokens=1, min_tokens=0, stop=(), stop_token_ids=(), ignore_eos=True, constraint=None)
"""One token that nothing can end early, and drawn as any other: what it is matters to nobody."""
RETURNED = '{"do_remote_prefill": true, "remote_block_ids": [3]}'
LINK = Link(
    worker(1, WorkerType.PREFILL, kv_engine_id="engine", dp_size=4),
    prefill_rank=3,
    room=1043,
    transfer_id="xfer-1",
    returned=RETURNED,
)
MEETING = Rendezvous("127.0.0.1", 9001, 1043)
NAMED = TransferParams('{"do_remote_decode":true,"do_remote_prefill":false,"transfer_id":"xfer-1"}')
FETCHED = TransferParams(
    '{"do_remote_decode":false,"do_remote_prefill":true,"transfer_id":"xfer-1",'
    '"remote_engine_id":"engine_dp3","remote_bootstrap_addr":"http://127.0.0.1:9001"}'
)
LEGS = {
    "rendezvous": (HandshakeKind.RENDEZVOUS, "mooncake", MEETING, MEETING),
    "nixl": (HandshakeKind.HANDOFF, "NixlConnector", None, TransferParams(RETURNED)),
    "mooncake": (HandshakeKind.HANDOFF, "MooncakeConnector", NAMED, FETCHED),
    "unknown": (HandshakeKind.HANDOFF, "SomethingNew", None, TransferParams(RETURNED)),
}


def stated(role: LegRole, *, prompt_logprobs: bool = True) -> LegRequest:
    """A leg of which every field has another value than it has by default. role: the other leg's."""
    return LegRequest(
        "leg",
        HandshakeKind.AGGREGATE,
        role,
        (1, 2, 3),
        SAMPLING,
        dp_rank=3,
        adapters=(AdapterUse("legal"),),
        output_logprobs=True,
        prompt_logprobs=prompt_logprobs,
        top_logprobs=4,
        highest_token_id=3,
        traceparent="00-a-b-01",
        metadata=(("x-request-id", "r"),),
    )


def of(name: str) -> Handshake:
    kind, connector, _, _ = LEGS[name]
    shake = handshake_for(kind, connector)
    assert shake is not None
    return shake


def test_request_states_every_parameter_there_is() -> None:
    bare = Sampling()
    assert [one.name for one in fields(Sampling) if getattr(SAMPLING, one.name) == getattr(bare, one.name)] == []


@pytest.mark.parametrize("name", LEGS)
def test_decode_is_the_request_without_the_prompts_logprobs(name: str) -> None:
    leg = stated(LegRole.PREFILL)
    expected = replace(leg, role=LegRole.DECODE, handoff=LEGS[name][3], prompt_logprobs=False)
    assert of(name).decode_leg(leg, LINK) == expected


def test_prefill_of_a_rendezvous_is_the_request_in_one_answer() -> None:
    leg = stated(LegRole.DECODE)
    expected = replace(leg, role=LegRole.PREFILL, handoff=MEETING, is_streaming=False)
    assert of("rendezvous").prefill_leg(leg, LINK) == expected


@pytest.mark.parametrize("name", sorted(LEGS.keys() - {"rendezvous"}))
@pytest.mark.parametrize(("prompt_logprobs", "top"), [(True, 4), (False, 0)])
def test_prefill_of_a_handoff_is_a_clone_for_one_token(name: str, prompt_logprobs: bool, top: int) -> None:
    leg = stated(LegRole.DECODE, prompt_logprobs=prompt_logprobs)
    assert of(name).prefill_leg(leg, LINK) == replace(
        leg,
        role=LegRole.PREFILL,
        handoff=LEGS[name][2],
        sampling=SPARE,
        is_streaming=False,
        output_logprobs=False,
        top_logprobs=top,
    )


@pytest.mark.parametrize("name", sorted(LEGS.keys() - {"rendezvous"}))
def test_least_of_tokens_that_nobody_stated_stays_unstated(name: str) -> None:
    leg = replace(stated(LegRole.DECODE), sampling=replace(SAMPLING, min_tokens=None))
    assert of(name).prefill_leg(leg, LINK).sampling.min_tokens is None

"""What each handshake puts into its legs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.policies.fleet import worker

from tandem_router.handshake import mooncake, relayed, rendezvous
from tandem_router.handshake.build import handshake_for
from tandem_router.handshake.contract import Handshake, Link
from tandem_router.handshake.mooncake import MooncakeHandshake
from tandem_router.handshake.relayed import RelayedHandshake
from tandem_router.handshake.rendezvous import RendezvousHandshake
from tandem_router.model.pairing import AbortInTransfer, HandshakeKind, LegRole, Rendezvous, TransferParams
from tandem_router.model.request import Constraint, ConstraintKind, LegRequest, Sampling
from tandem_router.model.spec import WorkerType

PREFILL = worker(1, WorkerType.PREFILL)
SAMPLING = Sampling(max_tokens=9, min_tokens=3, stop=("END",), stop_token_ids=(5,), temperature=0.0)
NIXL = RelayedHandshake(AbortInTransfer.SAFE, decode_outwaits_prefill=False)
MEETING = Link(PREFILL, room=1042)
LEG = LegRequest("leg", HandshakeKind.RENDEZVOUS, LegRole.DECODE, (1, 2, 3), SAMPLING)


def test_both_legs_of_a_rendezvous_carry_the_same_meeting_and_the_same_prompt() -> None:
    shake = RendezvousHandshake()
    prefill, decode = shake.prefill_leg(LEG, MEETING), shake.decode_leg(LEG, MEETING)
    assert prefill.handoff == decode.handoff == Rendezvous("127.0.0.1", 9001, 1042)
    assert (prefill.role, decode.role) == (LegRole.PREFILL, LegRole.DECODE)
    assert prefill.token_ids == decode.token_ids
    assert prefill.sampling == decode.sampling == SAMPLING


def test_a_rendezvous_without_a_room_or_a_bootstrap_is_never_built() -> None:
    with pytest.raises(ValueError, match="room"):
        RendezvousHandshake().prefill_leg(LEG, Link(PREFILL))
    with pytest.raises(ValueError, match="bootstrap"):
        RendezvousHandshake().decode_leg(LEG, Link(worker(3, WorkerType.PREFILL, bootstrap=None), room=1042))


def test_the_prefill_of_a_handoff_makes_one_token_that_nothing_can_end_early() -> None:
    prefill = NIXL.prefill_leg(LEG, Link(PREFILL))
    sampling = prefill.sampling
    assert (sampling.n, sampling.max_tokens, sampling.min_tokens) == (1, 1, 0)
    assert (sampling.stop, sampling.stop_token_ids, sampling.ignore_eos) == ((), (), True)
    assert not prefill.is_streaming
    assert prefill.handoff is None


def test_the_decode_of_a_handoff_carries_the_parameters_verbatim() -> None:
    text = '{"do_remote_prefill":true, "x":[1,  2]}'
    decode = NIXL.decode_leg(LEG, Link(PREFILL, returned=text))
    assert decode.handoff == TransferParams(text)
    assert decode.sampling == SAMPLING


def test_the_decode_of_a_handoff_without_parameters_is_never_built() -> None:
    with pytest.raises(ValueError, match="parameters"):
        NIXL.decode_leg(LEG, Link(PREFILL))


def test_the_decode_of_a_passed_through_handoff_carries_what_was_returned_and_nothing_where_nothing_was() -> None:
    shake = handshake_for(HandshakeKind.HANDOFF, "SomethingNew")
    assert shake is not None
    assert shake.decode_leg(LEG, Link(PREFILL, returned="{}")).handoff == TransferParams("{}")
    assert shake.decode_leg(LEG, Link(PREFILL)).handoff is None


@pytest.mark.parametrize(
    "shake", [RendezvousHandshake(), NIXL, MooncakeHandshake()], ids=["rendezvous", "handoff", "mooncake"]
)
def test_the_prompts_logprobs_are_asked_of_the_leg_that_computes_it(shake: Handshake) -> None:
    leg = replace(LEG, prompt_logprobs=True, output_logprobs=True, top_logprobs=3)
    known = worker(1, WorkerType.PREFILL, kv_engine_id="engine")
    link = Link(known, room=1042, transfer_id="xfer-1", returned="{}")
    prefill, decode = shake.prefill_leg(leg, link), shake.decode_leg(leg, link)
    assert (prefill.prompt_logprobs, prefill.top_logprobs) == (True, 3)
    assert (decode.prompt_logprobs, decode.output_logprobs, decode.top_logprobs) == (False, True, 3)


def test_a_constraint_binds_the_first_token_of_a_rendezvous_and_not_the_spare_one_of_a_handoff() -> None:
    constraint = Constraint(ConstraintKind.REGEX, "a")
    leg = replace(LEG, sampling=replace(SAMPLING, constraint=constraint))
    meeting = RendezvousHandshake().prefill_leg(leg, MEETING)
    spare = NIXL.prefill_leg(leg, Link(PREFILL))
    assert (meeting.sampling.constraint, spare.sampling.constraint) == (constraint, None)


DECLARED = [
    # kind, connector, abort, room, id, bootstrap, returns, outwaits, lease
    ("RENDEZVOUS", "mooncake", "DEFER", True, False, True, False, True, None),
    ("RENDEZVOUS", None, "DEFER", True, False, True, False, True, None),
    ("HANDOFF", "NixlConnector", "SAFE", False, False, False, True, False, None),
    ("HANDOFF", "nixlconnector", "SAFE", False, False, False, True, False, None),
    ("HANDOFF", "MooncakeConnector", "DEFER", False, True, True, False, True, 480.0),
    ("HANDOFF", "NixlPullConnector", "SAFE", False, False, False, True, False, None),
    ("HANDOFF", "NixlPushConnector", "DEFER", False, False, False, True, True, None),
    ("HANDOFF", "SomethingNew", "DEFER", False, False, False, False, True, None),
    ("HANDOFF", "LMCacheConnectorV1", "DEFER", False, False, False, False, True, None),
    ("HANDOFF", "MooncakeStoreConnector", "DEFER", False, False, False, False, False, None),
    ("HANDOFF", "HF3FSKVConnector", "DEFER", False, False, False, False, False, None),
    ("HANDOFF", "ExampleConnector", "DEFER", False, False, False, False, False, None),
    ("HANDOFF", "SharedStorageConnector", "DEFER", False, False, False, False, False, None),
    ("HANDOFF", None, "DEFER", False, False, False, True, True, None),
]


@pytest.mark.parametrize("row", DECLARED, ids=lambda row: f"{row[0].lower()}-{row[1]}")
def test_what_a_handshake_declares_follows_from_kind_and_connector(row: tuple[Any, ...]) -> None:
    kind, connector, *declared = row
    shake = handshake_for(HandshakeKind(kind), connector)
    assert shake is not None
    assert [
        shake.abort_in_transfer,
        shake.needs_room,
        shake.needs_transfer_id,
        shake.needs_bootstrap,
        shake.returns_params,
        shake.decode_outwaits_prefill,
        shake.handle_lease_s,
    ] == declared
    assert shake.kind == kind


def test_the_evidence_for_what_an_abort_does_stands_where_it_is_declared() -> None:
    for module in (mooncake, relayed, rendezvous):
        text = module.__doc__ or ""
        assert "abort" in text
        assert any(source in text for source in ("vLLM 0.32", "sglang #")), module.__name__


def test_a_protocol_that_names_no_handshake_has_none() -> None:
    assert handshake_for(None, "NixlConnector") is None

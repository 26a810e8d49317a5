"""What each handshake puts into its legs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.policies.fleet import worker

from tandem_router.handshake.build import handshake_for
from tandem_router.handshake.contract import Handshake
from tandem_router.handshake.relayed import RelayedHandshake
from tandem_router.handshake.rendezvous import RendezvousHandshake
from tandem_router.model.pairing import AbortInTransfer, HandshakeKind, LegRole, Rendezvous, TransferParams
from tandem_router.model.request import Constraint, ConstraintKind, LegRequest, Sampling
from tandem_router.model.spec import WorkerType

PREFILL, DECODE = worker(1, WorkerType.PREFILL), worker(2, WorkerType.DECODE)
SAMPLING = Sampling(max_tokens=9, min_tokens=3, stop=("END",), stop_token_ids=(5,), temperature=0.0)
LEG = LegRequest("leg", HandshakeKind.RENDEZVOUS, LegRole.DECODE, (1, 2, 3), SAMPLING)


def test_both_legs_of_a_rendezvous_carry_the_same_meeting_and_the_same_prompt() -> None:
    shake = RendezvousHandshake()
    prefill = shake.prefill_leg(LEG, prefill=PREFILL, decode=DECODE, room=1042)
    decode = shake.decode_leg(LEG, prefill=PREFILL, decode=DECODE, room=1042, transfer_params=None)
    assert prefill.handoff == decode.handoff == Rendezvous("127.0.0.1", 9001, 1042)
    assert (prefill.role, decode.role) == (LegRole.PREFILL, LegRole.DECODE)
    assert prefill.token_ids == decode.token_ids
    assert prefill.sampling == decode.sampling == SAMPLING


def test_a_rendezvous_without_a_room_or_a_bootstrap_is_never_built() -> None:
    with pytest.raises(ValueError, match="room"):
        RendezvousHandshake().prefill_leg(LEG, prefill=PREFILL, decode=DECODE, room=None)
    with pytest.raises(ValueError, match="bootstrap"):
        RendezvousHandshake().decode_leg(
            LEG, prefill=worker(3, WorkerType.PREFILL, bootstrap=None), decode=DECODE, room=1042, transfer_params=None
        )


def test_the_prefill_of_a_handoff_makes_one_token_that_nothing_can_end_early() -> None:
    prefill = RelayedHandshake(AbortInTransfer.SAFE).prefill_leg(LEG, prefill=PREFILL, decode=DECODE, room=None)
    sampling = prefill.sampling
    assert (sampling.n, sampling.max_tokens, sampling.min_tokens) == (1, 1, 0)
    assert (sampling.stop, sampling.stop_token_ids, sampling.ignore_eos) == ((), (), True)
    assert not prefill.is_streaming
    assert prefill.handoff is None


def test_the_decode_of_a_handoff_carries_the_parameters_verbatim() -> None:
    text = '{"do_remote_prefill":true, "x":[1,  2]}'
    decode = RelayedHandshake(AbortInTransfer.SAFE).decode_leg(
        LEG, prefill=PREFILL, decode=DECODE, room=None, transfer_params=text
    )
    assert decode.handoff == TransferParams(text)
    assert decode.sampling == SAMPLING


def test_the_decode_of_a_handoff_without_parameters_is_never_built() -> None:
    with pytest.raises(ValueError, match="parameters"):
        RelayedHandshake(AbortInTransfer.SAFE).decode_leg(
            LEG, prefill=PREFILL, decode=DECODE, room=None, transfer_params=None
        )


@pytest.mark.parametrize(
    "shake", [RendezvousHandshake(), RelayedHandshake(AbortInTransfer.SAFE)], ids=["rendezvous", "handoff"]
)
def test_the_prompts_logprobs_are_asked_of_the_leg_that_computes_it(shake: Handshake) -> None:
    leg = replace(LEG, prompt_logprobs=True, output_logprobs=True, top_logprobs=3)
    prefill = shake.prefill_leg(leg, prefill=PREFILL, decode=DECODE, room=1042)
    decode = shake.decode_leg(leg, prefill=PREFILL, decode=DECODE, room=1042, transfer_params="{}")
    assert (prefill.prompt_logprobs, prefill.top_logprobs) == (True, 3)
    assert (decode.prompt_logprobs, decode.output_logprobs, decode.top_logprobs) == (False, True, 3)


def test_a_constraint_binds_the_first_token_of_a_rendezvous_and_not_the_spare_one_of_a_handoff() -> None:
    constraint = Constraint(ConstraintKind.REGEX, "a")
    leg = replace(LEG, sampling=replace(SAMPLING, constraint=constraint))
    meeting = RendezvousHandshake().prefill_leg(leg, prefill=PREFILL, decode=DECODE, room=1042)
    spare = RelayedHandshake(AbortInTransfer.SAFE).prefill_leg(leg, prefill=PREFILL, decode=DECODE, room=None)
    assert (meeting.sampling.constraint, spare.sampling.constraint) == (constraint, None)


@pytest.mark.parametrize(
    ("kind", "connector", "abort"),
    [
        (HandshakeKind.RENDEZVOUS, "mooncake", AbortInTransfer.DEFER),
        (HandshakeKind.HANDOFF, "NixlConnector", AbortInTransfer.SAFE),
        (HandshakeKind.HANDOFF, "SomethingNew", AbortInTransfer.DEFER),
    ],
)
def test_the_handshake_and_what_an_abort_does_follow_from_kind_and_connector(
    kind: HandshakeKind, connector: str, abort: AbortInTransfer
) -> None:
    shake = handshake_for(kind, connector)
    assert shake is not None
    assert (shake.kind, shake.abort_in_transfer) == (kind, abort)


def test_a_protocol_that_names_no_handshake_has_none() -> None:
    assert handshake_for(None, "NixlConnector") is None

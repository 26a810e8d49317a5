"""Both legs of a pair draw by the defaults of the worker that generates, and go to the ranks that were chosen."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.policies.fleet import worker

from tandem_router.handshake.build import handshake_for
from tandem_router.handshake.contract import Link
from tandem_router.model.pairing import HandshakeKind, LegRole
from tandem_router.model.request import LegRequest, Sampling
from tandem_router.model.spec import ModelCard, WorkerType
from tandem_router.policies.contract import Candidate, Plan
from tandem_router.runtime.leg_requests import defaulted, leg_request, link_of

LEG = LegRequest("leg", HandshakeKind.AGGREGATE, LegRole.DECODE, (1,), Sampling(min_p=0.4))
SERVER = {"temperature": 0.1, "top_p": 0.1, "top_k": 1.0, "min_p": 0.1}
CARD = {"temperature": 0.2, "top_p": 0.2, "min_p": 0.2}
WORKER = {"temperature": 0.3, "min_p": 0.3}


def test_server_model_worker_and_request_go_over_each_other_in_that_order() -> None:
    plain = worker(1, WorkerType.DECODE, default_sampling=WORKER)
    decode = replace(plain, spec=replace(plain.spec, models=(ModelCard("m", default_sampling=CARD),)))
    sampling = defaulted(LEG, Candidate(decode, 0, 0), "m", SERVER).sampling
    assert (sampling.top_k, sampling.top_p, sampling.temperature, sampling.min_p) == (1, 0.2, 0.3, 0.4)


def test_the_card_of_another_model_does_not_count() -> None:
    plain = worker(1, WorkerType.DECODE)
    cards = (ModelCard("other", default_sampling=CARD), ModelCard("m"))
    decode = replace(plain, spec=replace(plain.spec, models=cards))
    assert defaulted(LEG, Candidate(decode, 0, 0), "m", {}).sampling == LEG.sampling


PREFILL = Candidate(worker(2, WorkerType.PREFILL, dp_size=4, kv_engine_id="engine"), 3, 0)
ONE_RANK = Candidate(worker(1, WorkerType.DECODE), 0, 0)
RANK_ZERO = Candidate(worker(1, WorkerType.DECODE, dp_size=2), 0, 0)


@pytest.mark.parametrize(("decode", "sent"), [(ONE_RANK, None), (RANK_ZERO, 0)], ids=["one rank", "rank zero of two"])
@pytest.mark.parametrize(
    ("kind", "connector"),
    [
        (HandshakeKind.RENDEZVOUS, None),
        (HandshakeKind.HANDOFF, "NixlConnector"),
        (HandshakeKind.HANDOFF, "MooncakeConnector"),
    ],
)
def test_each_leg_is_pinned_to_its_own_rank_and_rank_zero_is_said(
    kind: HandshakeKind, connector: str | None, decode: Candidate, sent: int | None
) -> None:
    handshake = handshake_for(kind, connector)
    plan = Plan(decode, PREFILL, handshake, {}, (), "PAIR_FITS")
    link = link_of(plan, 1027, "xfer-1", "{}")
    assert link == Link(PREFILL.worker, 3, 1027, "xfer-1", "{}")
    legs = [leg_request(LEG, LegRole.PREFILL, handshake, PREFILL, link)]
    legs.append(leg_request(LEG, LegRole.DECODE, handshake, decode, link))
    assert [leg.dp_rank for leg in legs] == [3, sent]
    assert [(leg.kind, leg.role) for leg in legs] == [(kind, LegRole.PREFILL), (kind, LegRole.DECODE)]


def test_one_worker_that_does_both_phases_has_no_link_and_no_handoff() -> None:
    plan = Plan(RANK_ZERO, None, None, {}, (), "NO_PAIR")
    assert link_of(plan, None, None, None) is None
    leg = leg_request(LEG, LegRole.DECODE, None, RANK_ZERO, None)
    assert (leg.kind, leg.handoff, leg.dp_rank) == (HandshakeKind.AGGREGATE, None, 0)

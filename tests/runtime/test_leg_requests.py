"""Both legs of a pair draw by the defaults of the worker that generates."""

from __future__ import annotations

from dataclasses import replace

from tests.policies.fleet import worker

from tandem_router.model.pairing import HandshakeKind, LegRole
from tandem_router.model.request import LegRequest, Sampling
from tandem_router.model.spec import ModelCard, WorkerType
from tandem_router.policies.contract import Candidate
from tandem_router.runtime.leg_requests import defaulted

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

"""PlanPair: the explanation as a reader gets it, and what it refuses."""

from __future__ import annotations

import grpc
import pytest
from tests.services.fakes import W1, W2, House

from tandem.v1 import generate_pb2, kv_pb2, pair_plan_pb2, pair_service_pb2, pair_service_pb2_grpc
from tandem_router.model.request import ServingMode


async def plan(house: House, **request: object) -> pair_plan_pb2.PairPlan:
    stub = pair_service_pb2_grpc.PairServiceStub(house.admin)
    answer = await stub.PlanPair(pair_service_pb2.PlanPairRequest(**request))  # type: ignore[arg-type]
    return answer.plan


async def test_the_choice_its_candidates_and_the_refusals_are_shown(house: House) -> None:
    shown = await plan(house, request={"text": "hello"})
    assert shown.serving_mode == generate_pb2.SERVING_MODE_DISAGGREGATED
    assert shown.serving_mode_reason == "PAIR_FITS"
    assert (shown.prefill.worker_id, shown.decode.worker_id) == (W1, W2)
    assert shown.connector == kv_pb2.KV_CONNECTOR_RENDEZVOUS
    [picked], [left_out] = shown.prefill_candidates, shown.decode_candidates
    assert (picked.picked, picked.total, picked.scores[0].scorer) == (True, 1.0, "least_in_flight")
    assert (left_out.picked, left_out.refusal.reason) == (False, "NOT_READY")
    [clash] = shown.refusals
    assert clash.reasons[0].reason == "NO_COMPATIBLE_PAIR"
    assert not shown.HasField("failure")


async def test_a_prompt_may_be_left_out_where_its_length_is_given(house: House) -> None:
    shown = await plan(house, request={"serving_mode": "SERVING_MODE_DISAGGREGATED"}, prompt_tokens=2_000)
    [(asked, assumed)] = house.relay.explained
    assert (assumed, asked.serving_mode) == (2_000, ServingMode.DISAGGREGATED)
    assert shown.prompt_tokens == 2_000


@pytest.mark.parametrize(
    ("request_", "named"),
    [({}, "request.input"), ({"text": "x", "sampling": {"top_p": 2.0}}, "request.sampling.top_p")],
)
async def test_a_bad_request_is_refused_with_the_path_of_its_field(
    house: House, request_: dict[str, object], named: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await plan(house, request=request_)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert f"INVALID_REQUEST: {named}" in (refused.value.details() or "")

"""CacheService and ProfileService: what reaches engines, what comes back, and what is refused before any is asked."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from tests.services.fakes import House
from tests.services.operated import A, B, refusal

from tandem.v1 import (
    cache_service_pb2,
    cache_service_pb2_grpc,
    failure_pb2,
    profile_service_pb2,
    profile_service_pb2_grpc,
)
from tandem_router.errors import Reason, TandemError
from tandem_router.model.operations import FlushCache, StartProfile, StopProfile
from tandem_router.model.selection import WorkerSelection

M: Any = {"model": "m"}
BOTH: Any = {"worker_ids": [A, B.upper(), A]}


def cache(house: House) -> Any:
    return cache_service_pb2_grpc.CacheServiceStub(house.admin)


def profile(house: House) -> Any:
    return profile_service_pb2_grpc.ProfileServiceStub(house.admin)


def flush(**fields: Any) -> cache_service_pb2.FlushCacheRequest:
    return cache_service_pb2.FlushCacheRequest(**fields)


def start(**fields: Any) -> profile_service_pb2.StartProfileRequest:
    return profile_service_pb2.StartProfileRequest(**{"workers": {"model": "m"}, **fields})


async def test_a_flush_names_each_worker_once_and_tells_how_it_went_on_each(house: House) -> None:
    answer = await cache(house).FlushCache(flush(workers=BOTH, wait_idle=Duration(seconds=3)))
    [(operation, selection, deadline_s)] = house.engines.asked
    assert (operation, selection, deadline_s) == (FlushCache(3.0), WorkerSelection((A, B)), None)
    good, bad = answer.outcomes
    assert (good.worker_id, good.message, good.HasField("failure")) == (A, "flushed", False)
    assert (bad.worker_id, bad.failure.reason, bad.failure.code) == (
        B,
        "ENGINE_ERROR",
        failure_pb2.STATUS_CODE_INTERNAL,
    )


async def test_the_caller_s_deadline_goes_along(house: House) -> None:
    await cache(house).FlushCache(flush(workers={"model": "m"}), timeout=30)
    [(_, _, deadline_s)] = house.engines.asked
    assert isinstance(deadline_s, float)
    # grpc rounds a deadline on the wire up, by tenths of a second at this length.
    assert 1000.0 + 20 < deadline_s <= 1000.0 + 30 + 0.5


async def test_a_profile_s_absent_fields_are_the_engine_s_defaults(house: House) -> None:
    await profile(house).StartProfile(start())
    await profile(house).StopProfile(profile_service_pb2.StopProfileRequest(workers=M))
    assert [operation for operation, *_ in house.engines.asked] == [StartProfile(), StopProfile()]


async def test_zero_and_false_of_a_profile_are_said_with_presence(house: House) -> None:
    fields = {"output_dir": "/t", "start_step": 0, "num_steps": 5, "activities": ["CPU"], "with_stack": False}
    await profile(house).StartProfile(start(**fields, record_shapes=True, by_stage=True))
    [(operation, *_)] = house.engines.asked
    assert operation == StartProfile("/t", 0, 5, ("CPU",), False, True, True)


@pytest.mark.parametrize(
    ("request_", "reason", "field"),
    [
        pytest.param(flush(), Reason.INVALID_REQUEST, "workers", id="none"),
        pytest.param(flush(workers={"worker_ids": [A], "model": "m"}), Reason.INVALID_REQUEST, "workers", id="two"),
        pytest.param(
            flush(workers={"worker_ids": [A, "x"]}), Reason.INVALID_WORKER_ID, "workers.worker_ids[1]", id="no UUID"
        ),
        pytest.param(
            flush(workers={"worker_ids": [A] * 1001}), Reason.INVALID_REQUEST, "workers.worker_ids", id="too many"
        ),
        pytest.param(flush(workers={"model": "m" * 257}), Reason.INVALID_REQUEST, "workers.model", id="long model"),
        pytest.param(
            flush(workers={"model": "m"}, wait_idle=Duration(seconds=601)),
            Reason.INVALID_REQUEST,
            "wait_idle",
            id="long wait",
        ),
        pytest.param(
            flush(workers={"model": "m"}, wait_idle=Duration(seconds=-1)),
            Reason.INVALID_REQUEST,
            "wait_idle",
            id="negative wait",
        ),
        pytest.param(start(output_dir="é" * 1025), Reason.INVALID_REQUEST, "output_dir", id="long folder"),
        pytest.param(start(activities=["CPU"] * 17), Reason.INVALID_REQUEST, "activities", id="many activities"),
        pytest.param(start(activities=["CPU", ""]), Reason.INVALID_REQUEST, "activities[1]", id="empty activity"),
        pytest.param(start(workers={}), Reason.INVALID_REQUEST, "workers", id="profile of nobody"),
    ],
)
async def test_what_is_out_of_range_asks_no_engine(house: House, request_: Any, reason: Reason, field: str) -> None:
    is_flush = isinstance(request_, cache_service_pb2.FlushCacheRequest)
    method: Any = cache(house).FlushCache if is_flush else profile(house).StartProfile
    error = await refusal(method(request_))
    assert (error.reason, error.field) == (reason, field)
    assert house.engines.asked == []


async def test_what_every_worker_refuses_is_the_call_s_own_error(house: House) -> None:
    house.engines.fault = TandemError(Reason.RUNTIME_CANNOT_PROFILE, "no such rpc", metadata={"worker_id": A})
    error = await refusal(profile(house).StopProfile(profile_service_pb2.StopProfileRequest(workers=BOTH)))
    assert (error.reason, error.metadata["worker_id"]) == (Reason.RUNTIME_CANNOT_PROFILE, A)

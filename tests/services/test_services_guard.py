"""What reaches a client when something is wrong: a status of our table, never an exception's text."""

from __future__ import annotations

import logging
from typing import Any

import grpc
import pytest
from tests.services.fakes import House

from tandem.v1 import (
    job_service_pb2_grpc,
    pair_service_pb2_grpc,
    router_service_pb2_grpc,
    worker_service_pb2,
    worker_service_pb2_grpc,
)
from tandem_router.errors import Reason, TandemError
from tandem_router.wire.status import decode

STUBS = {
    "RouterService": router_service_pb2_grpc.RouterServiceStub,
    "WorkerService": worker_service_pb2_grpc.WorkerServiceStub,
    "JobService": job_service_pb2_grpc.JobServiceStub,
    "PairService": pair_service_pb2_grpc.PairServiceStub,
}
MISSING = [
    ("RouterService", "ResumeGenerate"),
    ("RouterService", "GenerateSession"),
    ("PairService", "ReservePair"),
    ("PairService", "ReleasePair"),
]


async def _exhaust(call: Any) -> None:
    # By reads: a call that has been read from may not be iterated.
    while await call.read() is not grpc.aio.EOF:
        pass
    await call.code()
    raise AssertionError("the call succeeded")


async def refused(call: Any) -> tuple[grpc.StatusCode, TandemError | None, str]:
    """Code, decoded error and message of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (_exhaust(call) if hasattr(call, "__aiter__") else call)
    trailers = [(key, value) for key, value in caught.value.trailing_metadata() or ()]
    return caught.value.code(), decode(trailers), caught.value.details() or ""


@pytest.mark.parametrize(("service", "rpc"), MISSING)
async def test_rpc_that_is_not_carried_out_answers_unimplemented_with_its_name(
    house: House, service: str, rpc: str
) -> None:
    channel = house.public if service == "RouterService" else house.admin
    path = f"/tandem.v1.{service}/{rpc}"
    kind = type(getattr(STUBS[service](channel), rpc)).__name__
    raw: Any = b""
    if "StreamStream" in kind:
        call: Any = channel.stream_stream(path)(iter([raw]))
    elif "UnaryStream" in kind:
        call = channel.unary_stream(path)(raw)
    else:
        call = channel.unary_unary(path)(raw)
    code, error, message = await refused(call)
    assert (code, error and error.reason, error and error.metadata) == (
        grpc.StatusCode.UNIMPLEMENTED, Reason.FEATURE_NOT_IMPLEMENTED, {"rpc": rpc},
    ), message  # fmt: skip


@pytest.mark.parametrize("raw", [b"\xff", b"\x0a\x05ab", b"\x0a\x02\xc3\x28"], ids=["tag", "cut short", "not UTF-8"])
@pytest.mark.parametrize("path", ["/tandem.v1.RouterService/Generate", "/tandem.v1.WorkerService/GetWorker"])
async def test_malformed_bytes_are_refused_before_a_handler_sees_them(house: House, path: str, raw: bytes) -> None:
    is_stream = path.endswith("Generate")
    call: Any = (house.public.unary_stream if is_stream else house.admin.unary_unary)(path)(raw)
    code, error, _ = await refused(call)
    assert (code, error and error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, Reason.MALFORMED_MESSAGE)


async def test_unknown_exception_becomes_opaque_and_is_logged_under_its_request_id(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    house.registry.fault = RuntimeError("the secret of the house")
    stub = worker_service_pb2_grpc.WorkerServiceStub(house.admin)
    with caplog.at_level(logging.ERROR):
        code, error, message = await refused(stub.GetWorker(worker_service_pb2.GetWorkerRequest(worker_id="x")))
    assert (code, error and error.reason, "secret" in message, "id-1" in message, "id-1" in caplog.text) == (
        grpc.StatusCode.INTERNAL, Reason.INTERNAL_ERROR, False, True, True,
    )  # fmt: skip


async def test_status_message_begins_with_the_reason(house: House) -> None:
    stub = worker_service_pb2_grpc.WorkerServiceStub(house.admin)
    _, _, message = await refused(stub.GetWorker(worker_service_pb2.GetWorkerRequest(worker_id="x")))
    assert message == "WORKER_NOT_FOUND: no such worker"


async def test_unknown_method_is_unimplemented_without_a_reason(house: House) -> None:
    call: Any = house.public.unary_unary("/tandem.v1.RouterService/Nope")(b"")
    code, error, _ = await refused(call)
    assert (code, error) == (grpc.StatusCode.UNIMPLEMENTED, None)

"""Every row of the error table survives the wire."""

from __future__ import annotations

import pytest
from google.rpc import error_details_pb2, status_pb2

from tandem_router.errors import TABLE, Reason, TandemError
from tandem_router.wire import status


def details_of(wire: status.WireStatus) -> status_pb2.Status:
    return status_pb2.Status.FromString(dict(wire.trailers)[status.DETAILS_KEY])


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_round_trips_with_field_metadata_and_retry(reason: Reason) -> None:
    error = TandemError(reason, "It is 3, not 4.", field="sampling.n", metadata={"limit": "4"}, retry_after_s=1.25)
    back = status.decode(status.encode(error).trailers)
    assert back is not None
    assert (back.reason, back.sentence, back.field, back.metadata, back.retry_after_s) == (
        reason, error.sentence, error.field, error.metadata, 1.25,
    )  # fmt: skip


@pytest.mark.parametrize("reason", list(Reason))
def test_code_on_the_wire_is_the_table_s(reason: Reason) -> None:
    wire = status.encode(TandemError(reason, "x"))
    assert wire.code == TABLE[reason].code == details_of(wire).code


@pytest.mark.parametrize("reason", list(Reason))
def test_every_row_that_says_retryinfo_sends_one(reason: Reason) -> None:
    wire = status.encode(TandemError(reason, "x"))
    has_retry = any(detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for detail in details_of(wire).details)
    assert has_retry or "RetryInfo" not in TABLE[reason].action


def test_message_begins_with_reason_and_names_the_field() -> None:
    wire = status.encode(TandemError(Reason.INVALID_REQUEST, "Must be above 0.", field="sampling.top_p"))
    assert wire.message == "INVALID_REQUEST: sampling.top_p: Must be above 0."


def test_pushback_trailer_is_whole_milliseconds() -> None:
    wire = status.encode(TandemError(Reason.TOO_MANY_REQUESTS, "x", retry_after_s=0.25))
    assert dict(wire.trailers)["grpc-retry-pushback-ms"] == "250"


def test_no_retry_hint_sends_no_pushback() -> None:
    assert "grpc-retry-pushback-ms" not in dict(status.encode(TandemError(Reason.WORKER_LOST, "x")).trailers)


def test_missing_resource_is_named_by_type_and_id() -> None:
    wire = status.encode(TandemError(Reason.WORKER_NOT_FOUND, "x", metadata={"worker_id": "w"}))
    info = error_details_pb2.ResourceInfo()
    assert any(detail.Unpack(info) for detail in details_of(wire).details)
    assert (info.resource_type, info.resource_name) == ("tandem.v1.Worker", "w")


def test_request_id_travels_as_detail_and_trailer() -> None:
    wire = status.encode(TandemError(Reason.INTERNAL_ERROR, "x"), request_id="r-1")
    info = error_details_pb2.RequestInfo()
    assert any(detail.Unpack(info) for detail in details_of(wire).details)
    assert (info.request_id, dict(wire.trailers)["tandem-request-id"]) == ("r-1", "r-1")


def test_trailers_of_the_longest_error_fit_a_client_s_default_limit() -> None:
    error = TandemError(Reason.ENGINE_ERROR, "é" * 100_000, metadata={f"k{i}": "v" * 9999 for i in range(8)})
    wire = status.encode(error)
    size = len(wire.message.encode()) * 3 // 2 + sum(len(key) + len(value) * 4 // 3 for key, value in wire.trailers)
    assert size < 16 * 1024


def test_lone_surrogate_does_not_stop_the_answer() -> None:
    assert "ENGINE_ERROR" in status.encode(TandemError(Reason.ENGINE_ERROR, "bad \ud800 text")).message


@pytest.mark.parametrize(
    "trailers",
    [(), ((status.DETAILS_KEY, status_pb2.Status(code=5, message="x").SerializeToString()),)],
    ids=["none", "foreign"],
)
def test_foreign_status_decodes_to_none(trailers: tuple[tuple[str, bytes], ...]) -> None:
    assert status.decode(trailers) is None

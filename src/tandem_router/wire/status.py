"""Rows of the error table as gRPC status, and back.

A status carries `ErrorInfo{reason, domain "tandem", metadata}` always; `BadRequest` when a field is at fault;
`RetryInfo` and the trailer `grpc-retry-pushback-ms` (gRFC A6) when a repeat is sensible; `ResourceInfo` when a named
thing is missing or taken; `QuotaFailure` when a limit of ours is full; `RequestInfo` when the request has an id. Its
message is "REASON: field: sentence", since command-line clients print nothing else in clear text.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from tandem_router.errors import DOMAIN, Code, Reason, TandemError

__all__ = ["REQUEST_ID_KEY", "WireStatus", "decode", "encode"]

REQUEST_ID_KEY = "tandem-request-id"
"""Response header and trailer with the id under which the log has the request."""
DETAILS_KEY = "grpc-status-details-bin"
PUSHBACK_KEY = "grpc-retry-pushback-ms"

MAX_SENTENCE = 1000
"""Characters kept of a sentence: it travels twice (message, details), and clients take 8 KiB of trailers by default."""
MAX_METADATA_VALUE = 256

DEFAULT_RETRY_AFTER_S = {
    Reason.TOO_MANY_REQUESTS: 0.1,
    Reason.JOB_QUEUE_FULL: 1.0,
    Reason.NO_READY_WORKER: 1.0,
    Reason.NO_COMPATIBLE_PAIR: 1.0,
    Reason.DRAINING: 1.0,
}
"""The wait told to callers where the raiser had nothing better to say: these rows promise a RetryInfo."""

_RESOURCES = {
    Reason.MODEL_NOT_FOUND: ("tandem.v1.Model", "model"),
    Reason.WORKER_NOT_FOUND: ("tandem.v1.Worker", "worker_id"),
    Reason.JOB_NOT_FOUND: ("tandem.v1.Job", "job_id"),
    Reason.PAIR_NOT_FOUND: ("tandem.v1.Pair", "pair_id"),
    Reason.REQUEST_NOT_FOUND: ("tandem.v1.GenerateRequest", "request_id"),
    Reason.REQUEST_ID_IN_USE: ("tandem.v1.GenerateRequest", "request_id"),
    Reason.WORKER_ALREADY_EXISTS: ("tandem.v1.Worker", "worker_id"),
    Reason.WORKER_CREATE_IN_PROGRESS: ("tandem.v1.Worker", "worker_id"),
}
"""Reason -> type of the thing, and the metadata key that holds its name."""

_QUOTAS = {Reason.TOO_MANY_REQUESTS: "router", Reason.JOB_QUEUE_FULL: "jobs"}


@dataclass(frozen=True, slots=True)
class WireStatus:
    """A status as it goes onto the wire, before any gRPC library sees it."""

    code: Code
    message: str
    trailers: tuple[tuple[str, str | bytes], ...]


def encode(error: TandemError, *, request_id: str = "") -> WireStatus:
    """The status of an error; `request_id` names the request to the caller. Never raises."""
    sentence = _clip(error.sentence, MAX_SENTENCE)
    metadata = {key: _clip(value, MAX_METADATA_VALUE) for key, value in error.metadata.items()}
    where = f"{error.field}: " if error.field else ""
    message = f"{error.reason}: {where}{sentence}"
    retry_after_s = error.retry_after_s if error.retry_after_s is not None else DEFAULT_RETRY_AFTER_S.get(error.reason)
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=error.reason.value, domain=DOMAIN, metadata=metadata)]
    if error.field is not None:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=sentence, reason=error.reason.value
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(round(retry_after_s * 1000))
        details.append(retry)
    if error.reason in _RESOURCES:
        kind, key = _RESOURCES[error.reason]
        name = metadata.get(key, "")
        details.append(error_details_pb2.ResourceInfo(resource_type=kind, resource_name=name, description=sentence))
    if error.reason in _QUOTAS:
        quota = error_details_pb2.QuotaFailure.Violation(subject=_QUOTAS[error.reason], description=sentence)
        details.append(error_details_pb2.QuotaFailure(violations=[quota]))
    if request_id:
        details.append(error_details_pb2.RequestInfo(request_id=request_id))
    status = status_pb2.Status(code=int(error.code), message=message, details=[_pack(detail) for detail in details])
    trailers: list[tuple[str, str | bytes]] = [(DETAILS_KEY, status.SerializeToString())]
    if retry_after_s is not None:
        trailers.append((PUSHBACK_KEY, str(round(retry_after_s * 1000))))
    if request_id:
        trailers.append((REQUEST_ID_KEY, request_id))
    return WireStatus(error.code, message, tuple(trailers))


def decode(trailers: Iterable[tuple[str, str | bytes]]) -> TandemError | None:
    """The error behind a status's trailers, or None when no row of our table is in them."""
    raw = next((value for key, value in trailers if key == DETAILS_KEY), None)
    if not isinstance(raw, bytes):
        return None
    status = status_pb2.Status.FromString(raw)
    info = error_details_pb2.ErrorInfo()
    if not _unpack(status, info) or info.domain != DOMAIN or info.reason not in Reason.__members__:
        return None
    reason = Reason(info.reason)
    bad = error_details_pb2.BadRequest()
    field = bad.field_violations[0].field if _unpack(status, bad) and bad.field_violations else None
    retry = error_details_pb2.RetryInfo()
    retry_after_s = retry.retry_delay.ToMilliseconds() / 1000 if _unpack(status, retry) else None
    prefix = f"{reason}: {field}: " if field else f"{reason}: "
    return TandemError(
        reason,
        status.message.removeprefix(prefix),
        field=field,
        metadata=dict(info.metadata),
        retry_after_s=retry_after_s,
    )


def _pack(message: Message) -> Any:
    packed = Any()
    packed.Pack(message)
    return packed


def _unpack(status: status_pb2.Status, into: Message) -> bool:
    for detail in status.details:
        if detail.Is(into.DESCRIPTOR):
            detail.Unpack(into)
            return True
    return False


def _clip(text: str, limit: int) -> str:
    # A lone surrogate (an engine's broken text) cannot be serialised; the answer must go out all the same.
    text = text.encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= limit else text[: limit - 1] + "…"

"""Why a call failed, for a program to switch on. Copy this file; it needs `pip install tandem-router` and nothing else.

Every refusal of Tandem carries `google.rpc.ErrorInfo` with domain "tandem" and one of the reasons of docs/errors.md. A
status without it was not made by Tandem: the connection failed, a deadline passed here, or a proxy spoke.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

__all__ = ["Refusal", "refusal_of"]


@dataclass(frozen=True)
class Refusal:
    """A failed call, in the words of the server."""

    code: grpc.StatusCode
    message: str
    reason: str = ""
    """ErrorInfo.reason; empty where the status is not Tandem's."""
    field: str = ""
    """The request field at fault, like "sampling.top_p"."""
    retry_after_s: float | None = None
    """RetryInfo: when a repeat is sensible. None: the server did not say."""
    request_id: str = ""
    """What to quote when you report the failure."""

    @property
    def may_be_repeated(self) -> bool:
        """Whether the same call, made again, may succeed. Only ask this while no message of the answer has come."""
        return self.code is grpc.StatusCode.UNAVAILABLE or self.reason in ("TOO_MANY_REQUESTS", "ENGINE_ABORTED")


def refusal_of(error: grpc.RpcError | grpc.aio.AioRpcError) -> Refusal:
    """What a failed call says; the same for both of grpcio's APIs."""
    reason = field = request_id = ""
    retry_after_s = None
    trailers: Any = error.trailing_metadata() or ()
    for key, value in trailers:
        if key != "grpc-status-details-bin":
            continue
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        retry, request = error_details_pb2.RetryInfo(), error_details_pb2.RequestInfo()
        for detail in status_pb2.Status.FromString(value).details:
            if detail.Unpack(info) and info.domain == "tandem":
                reason = info.reason
            elif detail.Unpack(bad):
                field = bad.field_violations[0].field
            elif detail.Unpack(retry):
                retry_after_s = retry.retry_delay.ToTimedelta().total_seconds()
            elif detail.Unpack(request):
                request_id = request.request_id
    return Refusal(error.code(), error.details() or "", reason, field, retry_after_s, request_id)

"""Times, enums and failures between model/ and protobuf."""

from __future__ import annotations

import enum

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from tandem.v1 import failure_pb2
from tandem_router.errors import TABLE, Reason
from tandem_router.model.failure import Failure

__all__ = ["duration_pb", "enum_name", "failure_pb", "optional_duration_pb", "reason_pb", "timestamp_pb"]


def timestamp_pb(wall_s: float) -> Timestamp:
    """A Timestamp of seconds since the epoch, to the microsecond: a float holds no more of today's dates."""
    stamp = Timestamp()
    stamp.FromMicroseconds(round(wall_s * 1e6))
    return stamp


def duration_pb(seconds: float) -> Duration:
    """A Duration of float seconds, to the nanosecond."""
    span = Duration()
    span.FromNanoseconds(round(seconds * 1e9))
    return span


def optional_duration_pb(seconds: float | None) -> Duration | None:
    """As `duration_pb`; None stays absent."""
    return None if seconds is None else duration_pb(seconds)


def enum_name(prefix: str, member: enum.StrEnum | None) -> str:
    """The protobuf value name of a member: PREFIX_MEMBER, or PREFIX_UNSPECIFIED for None."""
    return f"{prefix}_{member.value if member is not None else 'UNSPECIFIED'}"


def failure_pb(failure: Failure) -> failure_pb2.Failure:
    """A recorded failure with the code of its row."""
    metadata = dict(failure.metadata) if failure.field is None else {**failure.metadata, "field": failure.field}
    return reason_pb(failure.reason, failure.sentence, metadata)


def reason_pb(reason: str, sentence: str, metadata: dict[str, str]) -> failure_pb2.Failure:
    """A failure of a reason that need not be in the table (a condition's); its code is then UNKNOWN."""
    row = TABLE.get(Reason(reason)) if reason in Reason.__members__ else None
    name = f"STATUS_CODE_{row.code.name}" if row is not None else "STATUS_CODE_UNKNOWN"
    return failure_pb2.Failure(
        code=failure_pb2.StatusCode.Value(name), reason=reason, message=sentence, metadata=metadata
    )

"""The API's own words on the command line: READY, prefill, drain ... and how times read.

A kind is in lower case (prefill), a state in upper case (READY); the enums below are the values that options take, and
a test holds them against the protos.
"""

from __future__ import annotations

import re
import time
from enum import StrEnum
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from tandem.v1 import worker_rank_pb2
from tandem_router.cli.text import age

__all__ = [
    "HEALTH",
    "JobStateWord",
    "JobTypeWord",
    "ModeWord",
    "OutcomeWord",
    "PairStateWord",
    "RuntimeWord",
    "StatusWord",
    "TypeWord",
    "duration",
    "kind",
    "number",
    "numbers",
    "one_of",
    "rank",
    "short_rank",
    "since",
    "state",
    "took",
    "until",
]

HEALTH = {0: "UNKNOWN", 1: "SERVING", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}
"""grpc.health.v1.HealthCheckResponse.ServingStatus by number."""


class TypeWord(StrEnum):
    """What a worker is for (WorkerType)."""

    REGULAR = "regular"
    PREFILL = "prefill"
    DECODE = "decode"
    ENCODE = "encode"


class RuntimeWord(StrEnum):
    """Which engine a worker runs (RuntimeType)."""

    SGLANG = "sglang"
    VLLM = "vllm"
    TRTLLM = "trtllm"
    TOKENSPEED = "tokenspeed"
    MLX = "mlx"
    NATIVE = "native"
    EXTERNAL = "external"


class StatusWord(StrEnum):
    """Where a worker is in its life (WorkerStatus)."""

    PENDING = "PENDING"
    READY = "READY"
    NOT_READY = "NOT_READY"
    DRAINING = "DRAINING"
    FAILED = "FAILED"
    GONE = "GONE"


class JobTypeWord(StrEnum):
    """What a job does (JobType)."""

    REGISTER_WORKER = "register_worker"
    REPLACE_WORKER = "replace_worker"
    UPDATE_WORKER = "update_worker"
    REMOVE_WORKER = "remove_worker"
    DRAIN_WORKER = "drain_worker"


class JobStateWord(StrEnum):
    """Where a job is (JobState)."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


class PairStateWord(StrEnum):
    """Where a pair is (PairState)."""

    RESERVED = "RESERVED"
    PREFILLING = "PREFILLING"
    DECODING = "DECODING"
    DONE = "DONE"
    ABORTING = "ABORTING"
    FAILED = "FAILED"


class OutcomeWord(StrEnum):
    """How a reserved pair went (PairOutcome)."""

    SUCCEEDED = "succeeded"
    UNUSED = "unused"
    PREFILL_FAILED = "prefill_failed"
    DECODE_FAILED = "decode_failed"
    CANCELLED = "cancelled"


class ModeWord(StrEnum):
    """Whether a request is split into two legs (ServingMode)."""

    DISAGGREGATED = "disaggregated"
    AGGREGATED = "aggregated"


def one_of(words: type[StrEnum]) -> str:
    """What an option that filters takes, for its help."""
    return f"Only {', '.join(words)}; may be repeated."


def number(enum: Any, word: StrEnum) -> Any:
    """The value of a proto enum that a word names."""
    return enum.Value(_prefix(enum) + word.name)


def numbers(enum: Any, words: list[Any] | None) -> list[Any]:
    """The values of a proto enum that some words name."""
    return [number(enum, word) for word in words or ()]


def state(enum: Any, value: int) -> str:
    """A value of a proto enum as a state: READY; empty for UNSPECIFIED, the number for one we do not know."""
    if value == 0:
        return ""
    try:
        return str(enum.Name(value)).removeprefix(_prefix(enum))
    except ValueError:
        return str(value)


def kind(enum: Any, value: int) -> str:
    """A value of a proto enum as a kind: prefill."""
    return state(enum, value).lower()


def rank(slot: worker_rank_pb2.WorkerRank) -> str:
    """A slot: its worker's id, and its rank where it has one."""
    return f"{slot.worker_id}/{slot.dp_rank}" if slot.HasField("dp_rank") else slot.worker_id


def short_rank(slot: worker_rank_pb2.WorkerRank) -> str:
    """A slot with the beginning of its worker's id, which commands take as well; empty where there is none."""
    rank = f"/{slot.dp_rank}" if slot.HasField("dp_rank") else ""
    return f"{slot.worker_id[:8]}{rank}"


def since(message: Any, field: str) -> str:
    """How long ago a time of a message was; empty where it is absent."""
    if not message.HasField(field):
        return ""
    return age(time.time() - _seconds(getattr(message, field)))


def until(message: Any, field: str) -> str:
    """How long it is to a time of a message, 0s for one that is past; empty where it is absent."""
    if not message.HasField(field):
        return ""
    return age(_seconds(getattr(message, field)) - time.time())


def took(begin: Timestamp, end: Timestamp) -> str:
    """The time from one to the other; empty unless both are set."""
    if not begin.ByteSize() or not end.ByteSize():
        return ""
    seconds = _seconds(end) - _seconds(begin)
    return f"{seconds * 1000:.0f}ms" if 0 <= seconds < 1 else age(seconds)


def duration(seconds: float) -> Duration:
    """Seconds as the API takes them."""
    answer = Duration()
    answer.FromNanoseconds(round(seconds * 1e9))
    return answer


def _seconds(moment: Timestamp) -> float:
    return moment.seconds + moment.nanos / 1e9


def _prefix(enum: Any) -> str:
    # WorkerStatus -> WORKER_STATUS_: buf's STANDARD style holds every value to it.
    name: str = enum.DESCRIPTOR.name
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).upper() + "_"

"""What the relay tells the Observer: past tense, frozen, in the order in which it happened."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from tandem_router.model.failure import Failure
from tandem_router.model.ids import PairId, RankKey
from tandem_router.model.pairing import HandshakeKind, LegRole, LegState
from tandem_router.model.stream import Finished

__all__ = [
    "AttemptLost",
    "AttemptPlanned",
    "FirstToken",
    "HandleReleased",
    "LegAborted",
    "LegClosed",
    "LegSent",
    "PrefillLost",
    "RequestAccepted",
    "RequestFailed",
    "RequestFinished",
    "RequestKind",
    "RequestRefused",
]


class RequestKind(enum.StrEnum):
    """What was asked for, in the words of the gen_ai conventions."""

    TEXT = "text_completion"
    """A continuation of text or tokens."""
    CHAT = "chat"
    EMBEDDINGS = "embeddings"


@dataclass(frozen=True, slots=True)
class RequestAccepted:
    """A client call passed the door."""

    request_id: str
    model: str
    """As the client wrote it: an alias, or empty where one model is served."""
    principal: str = ""
    traceparent: str | None = None
    """W3C, as the client sent it; not checked."""
    kind: RequestKind = RequestKind.TEXT


@dataclass(frozen=True, slots=True)
class RequestRefused:
    """A client call was turned away at the door; no other event names it."""

    request_id: str
    model: str
    failure: Failure


@dataclass(frozen=True, slots=True)
class AttemptPlanned:
    """Workers were chosen and their slots reserved."""

    request_id: str
    pair_id: PairId
    number: int
    kind: HandshakeKind
    prefill: RankKey | None
    decode: RankKey
    room: int | None


@dataclass(frozen=True, slots=True)
class LegSent:
    """A leg's request was handed to the transport."""

    pair_id: PairId
    leg_id: str
    role: LegRole
    key: RankKey


@dataclass(frozen=True, slots=True)
class FirstToken:
    """The commit point: decode's first token came."""

    request_id: str
    pair_id: PairId


@dataclass(frozen=True, slots=True)
class LegAborted:
    """The engine was asked to stop a leg; `failure` when it could not be asked."""

    leg_id: str
    failure: Failure | None


@dataclass(frozen=True, slots=True)
class LegClosed:
    """A leg is no longer open; exactly once per leg."""

    pair_id: PairId
    leg_id: str
    role: LegRole
    state: LegState
    failure: Failure | None = None
    """Why the attempt is over, where it is and failed."""


@dataclass(frozen=True, slots=True)
class PrefillLost:
    """Prefill failed after the commit point; the stream goes on."""

    pair_id: PairId
    failure: Failure


@dataclass(frozen=True, slots=True)
class HandleReleased:
    """An unused KV handle was given back, or (with a failure) left to its lease."""

    pair_id: PairId
    failure: Failure | None


@dataclass(frozen=True, slots=True)
class AttemptLost:
    """An attempt failed."""

    request_id: str
    pair_id: PairId
    number: int
    failure: Failure


@dataclass(frozen=True, slots=True)
class RequestFinished:
    """A client call ended well."""

    request_id: str
    finished: Finished


@dataclass(frozen=True, slots=True)
class RequestFailed:
    """A client call ended with an error."""

    request_id: str
    failure: Failure

"""How two legs are tied together: connectors, roles, rooms and what is handed over."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from tandem_router.model.failure import Failure
from tandem_router.model.ids import PairId, RankKey

__all__ = [
    "AbortInTransfer",
    "BootstrapEndpoint",
    "HandshakeKind",
    "KvHandoff",
    "KvRole",
    "LegRole",
    "LegState",
    "LegTimes",
    "PairState",
    "PairView",
    "Rendezvous",
    "TransferParams",
]


class KvRole(enum.StrEnum):
    """vLLM's words for what an engine does with KV blocks."""

    PRODUCER = "kv_producer"
    CONSUMER = "kv_consumer"
    BOTH = "kv_both"


class HandshakeKind(enum.StrEnum):
    """How the legs of an attempt meet."""

    AGGREGATE = "AGGREGATE"
    """No pair: one worker does both phases, as a decode leg without a sibling."""
    RENDEZVOUS = "RENDEZVOUS"
    """Both legs start at once and meet at a bootstrap room (SGLang)."""
    HANDOFF = "HANDOFF"
    """Prefill finishes, then decode gets its transfer params (vLLM)."""


class AbortInTransfer(enum.StrEnum):
    """What aborting a decode leg does while pages are on their way to it."""

    SAFE = "SAFE"
    DEFER = "DEFER"
    """It corrupts neighbours or strands blocks: wait for the first item or the grace (sglang #30233, #34208)."""


class LegRole(enum.StrEnum):
    """One of the two halves of a pair. An aggregated request is one DECODE leg, and so is an input to embed."""

    PREFILL = "PREFILL"
    DECODE = "DECODE"


class LegState(enum.StrEnum):
    """States of `core.leg`."""

    RESERVED = "RESERVED"
    SENT = "SENT"
    RUNNING = "RUNNING"
    DONE = "DONE"
    FAILED = "FAILED"
    LINGERING = "LINGERING"
    CLOSED = "CLOSED"


class PairState(enum.StrEnum):
    """What operators are shown, derived from the two legs."""

    RESERVED = "RESERVED"
    PREFILLING = "PREFILLING"
    DECODING = "DECODING"
    DONE = "DONE"
    ABORTING = "ABORTING"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class BootstrapEndpoint:
    """Where a prefill worker's decode partners knock."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """Where both legs meet. The room is unique fleet-wide and minted by `core.rooms` alone."""

    host: str
    port: int
    room: int
    """1024 .. 2^31 - 1 (SGLang's wire has int32); room % dp_size is the prefill's rank."""


@dataclass(frozen=True, slots=True)
class TransferParams:
    """kv_transfer_params: opaque JSON text, relayed verbatim from prefill to decode."""

    json: str


KvHandoff = Rendezvous | TransferParams


@dataclass(frozen=True, slots=True)
class LegTimes:
    """When a leg got where it is: wall clock, seconds since the epoch; None while not reached."""

    sent_at_s: float | None = None
    first_item_at_s: float | None = None
    """None for ever where the engine said nothing before its end."""
    closed_at_s: float | None = None


@dataclass(frozen=True, slots=True)
class PairView:
    """A live pair as ListPairs shows it."""

    id: PairId
    request_id: str
    attempt: int
    kind: HandshakeKind
    state: PairState
    prefill: RankKey | None
    prefill_state: LegState | None
    decode: RankKey
    decode_state: LegState
    room: int | None
    started_at_s: float
    """Wall clock, seconds since the epoch."""
    failure: Failure | None = None
    model: str = ""
    connector: str | None = None
    """The engine's own name of the connector."""
    abort_in_transfer: AbortInTransfer | None = None
    prefill_leg_id: str = ""
    """The request id that the worker sees."""
    decode_leg_id: str = ""
    prefill_times: LegTimes = LegTimes()
    """Times and revision are the table's (`core.watch_pairs`), which sees every change of state."""
    decode_times: LegTimes = LegTimes()
    committed_at_s: float | None = None
    """When decode's first token came."""
    ended_at_s: float | None = None
    """When both legs were closed."""
    revision: int = 0
    """Of the pairs of this router; 0 where it is in no table."""

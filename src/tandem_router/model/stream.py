"""What flows: items from an engine's stream, and what the client's sink is given."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from tandem_router.model.failure import Failure
from tandem_router.model.ids import PairId, WorkerId
from tandem_router.model.pairing import HandshakeKind

__all__ = [
    "Attempt",
    "ChoiceEnd",
    "EngineChunk",
    "EngineEnd",
    "EngineItem",
    "FinishReason",
    "Finished",
    "OutputChunk",
    "PhaseTimings",
    "QueueStatus",
    "ServedBy",
    "TokenLogprob",
    "Usage",
]


class FinishReason(enum.StrEnum):
    """Why a choice ended well."""

    STOP = "STOP"
    LENGTH = "LENGTH"


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural-log probability of one token, and of the likeliest others."""

    token_id: int
    logprob: float | None
    """None where nothing precedes the token: the first of a prompt."""
    top: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True)
class EngineChunk:
    """New tokens of one choice; never tokens that an earlier item carried (dialects even engines out).

    Mutable and plain on purpose: one is made per token on the hot path.
    """

    choice: int
    token_ids: tuple[int, ...]
    prompt_tokens: int = 0
    cached_tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    """Of the whole prompt, in one item of the leg that computed it."""


@dataclass(frozen=True, slots=True)
class EngineEnd:
    """The good end of one choice. A bad end ("abort", "error") is raised as EngineFailure by the dialect."""

    choice: int
    reason: FinishReason
    token_ids: tuple[int, ...] = ()
    """Tokens that no chunk carried before (an engine asked not to stream sends them all here)."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    matched_stop: int | str | None = None
    transfer_params: str | None = None
    """kv_transfer_params of a handoff's prefill leg: JSON text, verbatim."""
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()


EngineItem = EngineChunk | EngineEnd


@dataclass(slots=True)
class OutputChunk:
    """New output of one choice for the client."""

    choice: int
    next_offset: int
    """Index after this chunk's last token within the choice; offsets are contiguous."""
    token_ids: tuple[int, ...]
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """Where a request stands that is not admitted yet."""

    position: int
    """Requests ahead of it."""
    length: int
    """Requests in the queue, this one included."""
    waited_s: float


@dataclass(frozen=True, slots=True)
class ChoiceEnd:
    """How one choice ended."""

    choice: int
    reason: FinishReason
    matched_stop: int | str | None = None
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a finished request, over all choices."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class PhaseTimings:
    """Seconds between ordered boundaries on the router's one clock; they sum to total_s exactly.

    Boundaries: accepted, planned, prefill sent, prefill ended, decode sent, first token, end. In a rendezvous the first
    token may come before prefill's end: boundaries are then clamped so that each phase is >= 0 and the sum holds.
    """

    queue_s: float
    """Accepted until the attempt that served it was planned, failed attempts included."""
    prefill_s: float
    """Sent to prefill until prefill's answer (0 when aggregated)."""
    transfer_s: float
    """Prefill's answer until decode's first token, in a pair (0 when aggregated)."""
    first_token_s: float
    """Sent until first token where there is no pair; 0 in a pair."""
    decode_s: float
    """First token until the end."""
    total_s: float


@dataclass(frozen=True, slots=True)
class ServedBy:
    """Who answered."""

    pair_id: PairId
    kind: HandshakeKind
    decode_worker_id: WorkerId
    decode_dp_rank: int
    prefill_worker_id: WorkerId | None = None
    prefill_dp_rank: int | None = None
    room: int | None = None
    connector: str | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try of a request."""

    number: int
    """From 1."""
    served_by: ServedBy
    failure: Failure | None = None
    """None for the attempt that succeeded."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The last message of a good stream."""

    model: str
    choices: tuple[ChoiceEnd, ...]
    usage: Usage
    timings: PhaseTimings
    served_by: ServedBy
    attempts: tuple[Attempt, ...]

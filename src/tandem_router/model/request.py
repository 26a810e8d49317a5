"""A generation request as the router works on it, and the legs it becomes."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from tandem_router.model.adapters import AdapterUse
from tandem_router.model.ids import WorkerId
from tandem_router.model.pairing import HandshakeKind, KvHandoff, LegRole

__all__ = [
    "ChatMessage",
    "Constraint",
    "ConstraintKind",
    "GenerateRequest",
    "LegRequest",
    "Output",
    "RequestContext",
    "Sampling",
    "ServingMode",
    "Timeouts",
]


@dataclass(frozen=True, slots=True)
class RequestContext:
    """Who calls and how long they wait; anonymous until there is authentication."""

    principal: str = "anonymous"
    tenant: str = ""
    deadline_s: float | None = None
    """Monotonic clock of the router; None = the caller set none."""
    traceparent: str | None = None
    forwarded: tuple[tuple[str, str], ...] = ()
    """Of the call's metadata, what the allow-list lets through to workers, traceparent excepted."""


class ConstraintKind(enum.StrEnum):
    """A way of saying what form an answer must have."""

    JSON_SCHEMA = "JSON_SCHEMA"
    REGEX = "REGEX"
    EBNF = "EBNF"
    GBNF = "GBNF"
    STRUCTURAL_TAG = "STRUCTURAL_TAG"
    CHOICE = "CHOICE"


@dataclass(frozen=True, slots=True)
class Constraint:
    """A form that an answer must have; its syntax is the engine's affair."""

    kind: ConstraintKind
    text: str = ""
    """Of every kind but CHOICE."""
    choices: tuple[str, ...] = ()
    """Of CHOICE."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters; None = the engine's or worker's default."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    n: int = 1
    max_tokens: int | None = None
    min_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    include_stop: bool = False
    """Whether the text keeps the stop string, or the text of the stop token, that ended it."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    constraint: Constraint | None = None


class Output(enum.StrEnum):
    """What the caller wants in chunks."""

    TOKENS = "TOKENS"
    TEXT = "TEXT"
    BOTH = "BOTH"


class ServingMode(enum.StrEnum):
    """Whether a request is served by a pair or by one worker."""

    DISAGGREGATED = "DISAGGREGATED"
    AGGREGATED = "AGGREGATED"


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Limits of one request in seconds; None = no limit of its own."""

    queue_s: float | None = None
    first_token_s: float | None = None
    inter_token_s: float | None = None
    total_s: float | None = None


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One client call, validated. Exactly one of text, token_ids and messages is set."""

    request_id: str
    model: str
    text: str | None = None
    token_ids: tuple[int, ...] | None = None
    messages: tuple[ChatMessage, ...] | None = None
    sampling: Sampling = Sampling()
    output: Output = Output.BOTH
    timeouts: Timeouts = Timeouts()
    output_logprobs: bool = False
    prompt_logprobs: bool = False
    prompt_logprobs_start: int = 0
    """First prompt position whose log probability is returned."""
    top_logprobs: int = 0
    priority: int = 0
    """Order in the queue, -100 to 100; higher goes first."""
    queue_updates_s: float | None = None
    """Between two messages to a client that waits in the queue; None sends none."""
    session_key: str | None = None
    adapters: tuple[AdapterUse, ...] = ()
    target_worker_id: WorkerId | None = None
    target_dp_rank: int | None = None
    target_prefill_id: WorkerId | None = None
    target_prefill_rank: int | None = None
    serving_mode: ServingMode | None = None
    """None = the router decides."""


@dataclass(frozen=True, slots=True)
class LegRequest:
    """One call to one engine, in Tandem's words; a dialect in `engines/` turns it into the engine's."""

    leg_id: str
    """The id that the engine sees: fresh per attempt and leg, never a prefix of another (SGLang aborts by prefix)."""
    kind: HandshakeKind
    role: LegRole
    token_ids: tuple[int, ...]
    sampling: Sampling
    handoff: KvHandoff | None = None
    """The room for both legs of a rendezvous; params for the decode of a handoff. A handoff's prefill has None, which
    asks for params in the protocol's own words, or what its connector is to be told beforehand (a transfer's id)."""
    dp_rank: int | None = None
    """None = the engine has one rank; 0 is sent with presence."""
    adapters: tuple[AdapterUse, ...] = ()
    output_logprobs: bool = False
    prompt_logprobs: bool = False
    top_logprobs: int = 0
    is_streaming: bool = True
    highest_token_id: int | None = None
    """The largest of token_ids; None = nobody has looked for it yet."""
    traceparent: str | None = None
    metadata: tuple[tuple[str, str], ...] = ()
    """More metadata of the call to the engine; never credentials."""

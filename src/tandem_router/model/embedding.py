"""Embedding: what a client asks for, one text's call to an engine, and the vectors."""

from __future__ import annotations

from dataclasses import dataclass, field

from tandem_router.model.adapters import AdapterUse
from tandem_router.model.ids import WorkerId
from tandem_router.model.request import Timeouts
from tandem_router.model.stream import Attempt, Usage

__all__ = ["EmbedInput", "EmbedLeg", "EmbedRequest", "Embedded", "Vector"]

EmbedInput = str | tuple[int, ...]
"""A text, or token ids."""


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """One client call for vectors, validated."""

    request_id: str
    model: str
    """Id or alias; empty = the only model there is."""
    inputs: tuple[EmbedInput, ...]
    """1 to 2,048."""
    dimensions: int | None = None
    """Values that are kept of each vector, at least 1; None = all."""
    normalize: bool = True
    """Scale vectors to length 1, after the cut."""
    adapters: tuple[AdapterUse, ...] = ()
    priority: int = 0
    """As in GenerateRequest."""
    target_worker_id: WorkerId | None = None
    """The worker that must answer; None = the router chooses."""
    target_dp_rank: int | None = None
    timeouts: Timeouts = field(default_factory=Timeouts)
    """first_token_s is until the answer; inter_token_s means nothing."""


@dataclass(frozen=True, slots=True)
class EmbedLeg:
    """One call to one engine for one vector, in Tandem's words."""

    leg_id: str
    """As in LegRequest: fresh, never a prefix of another."""
    token_ids: tuple[int, ...]
    """Not empty."""
    dp_rank: int | None = None
    """None = the engine has one rank, or its protocol has no field for it."""
    adapters: tuple[AdapterUse, ...] = ()
    traceparent: str | None = None
    metadata: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Vector:
    """What came back."""

    values: tuple[float, ...]
    """As the engine made it; not cut, not scaled."""
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Embedded:
    """The answer to a client's call."""

    model: str
    """Id of the model that answered."""
    vectors: tuple[tuple[float, ...], ...]
    """One per input, in the order of the inputs; cut and scaled as asked."""
    usage: Usage
    attempts: tuple[Attempt, ...]
    """Every try of every input, by input, numbered through from 1."""

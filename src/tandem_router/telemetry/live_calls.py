"""What telemetry remembers of calls that run: when they began, and what was tried for them."""

from __future__ import annotations

from dataclasses import dataclass, field

from tandem_router.core.relay_events import AttemptPlanned, RequestKind
from tandem_router.model.failure import Failure
from tandem_router.model.ids import PairId

__all__ = ["LiveCall", "Tried"]


@dataclass(slots=True)
class Tried:
    """One attempt."""

    plan: AttemptPlanned
    failure: Failure | None = None
    """None while it runs, and for ever if it served."""


@dataclass(slots=True)
class LiveCall:
    """One Generate or Embed call."""

    request_id: str
    model: str
    """As the client wrote it."""
    principal: str
    kind: RequestKind
    began_s: float
    """Monotonic clock of telemetry."""
    first_token_s: float | None = None
    """Same clock; None before the first token."""
    tried: dict[PairId, Tried] = field(default_factory=dict)
    """In the order of the tries."""

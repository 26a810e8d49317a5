"""A routing decision with everything that was looked at: what PlanPair shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tandem_router.model.failure import Failure
from tandem_router.model.ids import RankKey, WorkerId
from tandem_router.model.pairing import HandshakeKind
from tandem_router.model.request import ServingMode
from tandem_router.model.spec import WorkerType

__all__ = ["Clash", "Explanation", "Judged"]


@dataclass(frozen=True, slots=True)
class Judged:
    """One slot that was looked at for one role."""

    worker_id: WorkerId
    dp_rank: int | None
    """None where the worker was refused as a whole."""
    score: float | None
    """In [0, 1], higher is better; None where it was left out."""
    refusal: tuple[str, str] | None
    """Reason and sentence; None where it was scored."""
    is_picked: bool


@dataclass(frozen=True, slots=True)
class Clash:
    """Why two workers cannot be a pair."""

    prefill_worker_id: WorkerId
    decode_worker_id: WorkerId
    failure: Failure


@dataclass(frozen=True, slots=True)
class Explanation:
    """What would happen to a request now, and why."""

    serving_mode: ServingMode | None
    """None where it could not be served; see failure."""
    reason: str
    """UPPER_SNAKE: why this mode; empty where it could not be served."""
    kind: HandshakeKind
    connector: str | None
    prefill: RankKey | None
    decode: RankKey | None
    judged: Mapping[WorkerType, tuple[Judged, ...]]
    """By role: picked first, then best first, then those left out."""
    scorer: str
    """Name of the scorer that the scores are of."""
    clashes: tuple[Clash, ...]
    failure: Failure | None
    prompt_tokens: int | None
    """None where no tokenizer is known."""

"""The same choice as `plan`, with everything that was looked at: what PlanPair shows. Nothing is reserved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tandem_router.model.failure import Failure
from tandem_router.model.ids import RankKey, WorkerId
from tandem_router.model.spec import WorkerType
from tandem_router.model.worker import Worker
from tandem_router.policies.compatibility import incompatibility
from tandem_router.policies.contract import Candidate, InFlight, Plan, Query, Refusal, Scorer
from tandem_router.policies.filters import slots
from tandem_router.policies.plan import Planner

__all__ = ["Clash", "Explanation", "Judged", "explain"]


@dataclass(frozen=True, slots=True)
class Judged:
    """One slot that was looked at for one role."""

    worker_id: WorkerId
    dp_rank: int
    """0 where the worker was refused as a whole."""
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
    """What would happen to a query now, and why."""

    query: Query
    outcome: Plan | Refusal
    judged: Mapping[WorkerType, tuple[Judged, ...]]
    """By role, picked first, then best first, then those left out."""
    clashes: tuple[Clash, ...]


def explain(
    planner: Planner,
    scorer: Scorer,
    query: Query,
    workers: Mapping[WorkerId, Worker],
    in_flight: InFlight,
    *,
    random: float,
) -> Explanation:
    """Plan and say everything that was looked at; `random` in [0, 1) breaks ties as it does in `Planner.plan`."""
    outcome = planner.plan(query, workers, in_flight, random=random)
    picked: dict[RankKey, None] = {}
    if isinstance(outcome, Plan):
        chosen = (outcome.decode,) if outcome.prefill is None else (outcome.decode, outcome.prefill)
        picked = {candidate.key: None for candidate in chosen}
    judged: dict[WorkerType, tuple[Judged, ...]] = {}
    candidates: dict[WorkerType, list[Candidate]] = {}
    for role in (WorkerType.PREFILL, WorkerType.DECODE, WorkerType.REGULAR):
        candidates[role], rejections = slots(query, workers, role, in_flight)
        refused = [
            Judged(rejection.worker_id, 0, None, (rejection.reason, rejection.sentence), False)
            for rejection in rejections
        ]
        judged[role] = (*_scored(scorer, query, candidates[role], picked), *refused)
    clashes = tuple(
        Clash(prefill.id, decode.id, failure)
        for prefill in _workers(candidates[WorkerType.PREFILL])
        for decode in _workers(candidates[WorkerType.DECODE])
        if (failure := incompatibility(prefill, decode)) is not None
    )
    return Explanation(query, outcome, judged, clashes)


def _scored(
    scorer: Scorer, query: Query, candidates: Sequence[Candidate], picked: Mapping[RankKey, None]
) -> list[Judged]:
    if not candidates:
        return []
    scores = scorer.score(query, candidates)
    judged = [
        Judged(candidate.worker.id, candidate.dp_rank, score, None, candidate.key in picked)
        for candidate, score in zip(candidates, scores, strict=True)
    ]
    return sorted(judged, key=lambda slot: (not slot.is_picked, -(slot.score or 0.0)))


def _workers(candidates: Sequence[Candidate]) -> tuple[Worker, ...]:
    return tuple({candidate.worker.id: candidate.worker for candidate in candidates}.values())

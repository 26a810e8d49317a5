"""The same choice as `Planner.plan`, with everything that was looked at. Nothing is reserved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tandem_router.model.explanation import Clash, Explanation, Judged
from tandem_router.model.ids import RankKey, WorkerId
from tandem_router.model.pairing import HandshakeKind
from tandem_router.model.spec import WorkerType
from tandem_router.model.worker import Worker
from tandem_router.policies.compatibility import incompatibility
from tandem_router.policies.contract import Candidate, InFlight, Plan, Query, Scorer
from tandem_router.policies.filters import slots
from tandem_router.policies.plan import Planner

__all__ = ["explain"]

_ROLES = (WorkerType.PREFILL, WorkerType.DECODE, WorkerType.REGULAR)


def explain(
    planner: Planner,
    query: Query,
    workers: Mapping[WorkerId, Worker],
    in_flight: InFlight,
    *,
    random: float,
    prompt_tokens: int | None,
) -> Explanation:
    """Plan, and say everything that was looked at; `random` in [0, 1) breaks ties as it does in `Planner.plan`.

    prompt_tokens: what is shown; None where the query's length is an assumption.
    """
    outcome = planner.plan(query, workers, in_flight, random=random)
    plan = outcome if isinstance(outcome, Plan) else None
    picked: dict[RankKey, None] = {}
    connector: str | None = None
    if plan is not None:
        picked[plan.decode.key] = None
        if plan.prefill is not None:
            picked[plan.prefill.key] = None
            connector = None if plan.prefill.worker.facts is None else plan.prefill.worker.facts.kv_connector
    judged: dict[WorkerType, tuple[Judged, ...]] = {}
    candidates: dict[WorkerType, Sequence[Candidate]] = {}
    for role in _ROLES:
        candidates[role], rejections = slots(query, workers, role, in_flight)
        refused = [
            Judged(rejection.worker_id, None, None, (rejection.reason, rejection.sentence), False)
            for rejection in rejections
        ]
        judged[role] = (*_scored(planner.scorer, query, candidates[role], picked), *refused)
    return Explanation(
        serving_mode=None if plan is None else plan.serving_mode,
        reason="" if plan is None else plan.reason,
        kind=HandshakeKind.AGGREGATE if plan is None else plan.kind,
        connector=connector,
        prefill=None if plan is None or plan.prefill is None else plan.prefill.key,
        decode=None if plan is None else plan.decode.key,
        judged=judged,
        scorer=planner.scorer.name,
        clashes=_clashes(candidates[WorkerType.PREFILL], candidates[WorkerType.DECODE]),
        failure=None if isinstance(outcome, Plan) else outcome.failure,
        prompt_tokens=prompt_tokens,
    )


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


def _clashes(prefills: Sequence[Candidate], decodes: Sequence[Candidate]) -> tuple[Clash, ...]:
    return tuple(
        Clash(prefill.id, decode.id, failure)
        for prefill in _workers(prefills)
        for decode in _workers(decodes)
        if (failure := incompatibility(prefill, decode)) is not None
    )


def _workers(candidates: Sequence[Candidate]) -> tuple[Worker, ...]:
    return tuple({candidate.worker.id: candidate.worker for candidate in candidates}.values())

"""From a fleet and a query to a Plan or a Refusal: decode is chosen first, then prefill among those that fit it.

A named target decodes (or serves alone), a named prefill target prefills, a stated serving mode is kept: a request is
never served in a way that it did not ask for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tandem_router.errors import Reason
from tandem_router.handshake.build import handshake_for
from tandem_router.model.failure import Failure
from tandem_router.model.ids import RankKey, WorkerId
from tandem_router.model.request import ServingMode
from tandem_router.model.settings import RuntimeSettings
from tandem_router.model.spec import WorkerType
from tandem_router.model.worker import Worker
from tandem_router.policies.compatibility import incompatibility
from tandem_router.policies.contract import Candidate, InFlight, Plan, Query, Refusal, Rejection, Scorer
from tandem_router.policies.filters import highest_priority, prefer_untried, slots
from tandem_router.policies.no_place import CANNOT_PAIR, no_place, unknown_model

__all__ = ["Planner", "unknown_model"]


class Planner:
    """Chooses the workers of an attempt. Pure: the same arguments give the same answer."""

    def __init__(self, settings: RuntimeSettings, scorer: Scorer) -> None:
        self._settings = settings
        self.scorer = scorer

    def plan(
        self, query: Query, workers: Mapping[WorkerId, Worker], in_flight: InFlight, *, random: float
    ) -> Plan | Refusal:
        """Where the query goes now; `random` in [0, 1) breaks ties."""
        if not any(worker.serves(query.model) for worker in workers.values()):
            return Refusal(unknown_model(query.model, workers), ())
        scores: dict[RankKey, float] = {}
        decodes, rejections = slots(query, workers, WorkerType.DECODE, in_flight)
        prefills, refused = slots(query, workers, WorkerType.PREFILL, in_flight)
        rejections += refused
        alone, refused = slots(query, workers, WorkerType.REGULAR, in_flight)
        rejections += refused
        wants_pair = query.serving_mode is ServingMode.DISAGGREGATED or query.target_prefill_id is not None
        if query.serving_mode is ServingMode.AGGREGATED:
            if alone:
                return self._alone(query, alone, scores, rejections, random, "REQUESTED")
            return Refusal(no_place(query, workers, decodes, prefills, rejections), tuple(rejections))
        is_short = query.prompt_tokens < self._settings.disaggregate_min_tokens
        if is_short and alone and not wants_pair:
            return self._alone(query, alone, scores, rejections, random, "PROMPT_SHORT")
        pair = self._pair(query, decodes, prefills, scores, rejections, random)
        if pair is not None:
            return pair
        may_stand_in = self._settings.allow_aggregated_fallback or query.target_worker_id is not None
        if alone and not wants_pair and (may_stand_in or not (decodes or prefills)):
            return self._alone(query, alone, scores, rejections, random, "NO_PAIR")
        return Refusal(no_place(query, workers, decodes, prefills, rejections), tuple(rejections))

    def replace_decode(
        self, plan: Plan, query: Query, workers: Mapping[WorkerId, Worker], in_flight: InFlight, *, random: float
    ) -> Candidate | None:
        """Another decode worker for the unused KV handle of the plan's prefill, or None."""
        if plan.prefill is None:
            return None
        decodes, _ = slots(query, workers, WorkerType.DECODE, in_flight)
        prefill = plan.prefill.worker
        fitting = [
            candidate
            for candidate in decodes
            if candidate.worker.id not in query.avoid and incompatibility(prefill, candidate.worker) is None
        ]
        return self._best(query, fitting, {}, random) if fitting else None

    def _pair(
        self,
        query: Query,
        decodes: Sequence[Candidate],
        prefills: Sequence[Candidate],
        scores: dict[RankKey, float],
        rejections: list[Rejection],
        random: float,
    ) -> Plan | None:
        """The best decode that has a fitting prefill, and the best of those; rejections grow by what did not fit."""
        remaining = list(prefer_untried(decodes, query.avoid))
        tried_last = [candidate for candidate in decodes if candidate not in remaining]
        for pool in (remaining, tried_last):
            while pool:
                decode = self._best(query, pool, scores, random)
                fitting: list[Candidate] = []
                for prefill in prefills:
                    clash = incompatibility(prefill.worker, decode.worker)
                    if clash is None:
                        fitting.append(prefill)
                    else:
                        rejections.append(Rejection(prefill.worker.id, _misfit(clash), clash.sentence))
                if fitting:
                    prefill = self._best(query, prefer_untried(fitting, query.avoid), scores, random)
                    facts = prefill.worker.facts
                    handshake = handshake_for(facts.handshake, facts.kv_connector) if facts is not None else None
                    return Plan(decode, prefill, handshake, scores, tuple(rejections), "PAIR_FITS")
                pool.remove(decode)
        return None

    def _alone(
        self,
        query: Query,
        candidates: Sequence[Candidate],
        scores: dict[RankKey, float],
        rejections: Sequence[Rejection],
        random: float,
        reason: str,
    ) -> Plan:
        chosen = self._best(query, prefer_untried(candidates, query.avoid), scores, random)
        return Plan(chosen, None, None, scores, tuple(rejections), reason)

    def _best(
        self, query: Query, candidates: Sequence[Candidate], scores: dict[RankKey, float], random: float
    ) -> Candidate:
        """The highest score among those of the highest priority; one of the equals by `random`."""
        candidates = highest_priority(candidates)
        given = self.scorer.score(query, candidates)
        top = max(given)
        scores.update({candidate.key: score for candidate, score in zip(candidates, given, strict=True)})
        best = [candidate for candidate, score in zip(candidates, given, strict=True) if score == top]
        return best[int(random * len(best))]


def _misfit(clash: Failure) -> str:
    return CANNOT_PAIR if clash.reason is Reason.RUNTIME_CANNOT_RETURN_CONTEXT_PARAMS else "INCOMPATIBLE"

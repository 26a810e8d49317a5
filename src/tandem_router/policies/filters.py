"""Filters: which slots may take a leg at all. Every worker that is left out is left out with a reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tandem_router.model.ids import WorkerId
from tandem_router.model.spec import WorkerType
from tandem_router.model.worker import Worker, WorkerStatus
from tandem_router.policies.contract import Candidate, InFlight, Query, Rejection

__all__ = ["embeds", "generates", "highest_priority", "lacks", "most_choices", "prefer_untried", "slots", "target_of"]


def slots(
    query: Query, workers: Mapping[WorkerId, Worker], worker_type: WorkerType, in_flight: InFlight
) -> tuple[list[Candidate], list[Rejection]]:
    """The slots of one worker type that could take the query, and why the others could not."""
    candidates: list[Candidate] = []
    rejections: list[Rejection] = []
    for worker in workers.values():
        if worker.worker_type is not worker_type or not worker.serves(query.model):
            continue
        rejection = _reject(query, worker)
        if rejection is not None:
            rejections.append(rejection)
            continue
        wanted = target_of(query, worker)[1]
        ranks = [rank for rank in worker.ranks if wanted is None or rank.dp_rank == wanted]
        healthy = [rank for rank in ranks if rank.is_healthy]
        if not ranks and wanted is not None:
            rejections.append(Rejection(worker.id, "NOT_TARGET", f"it has no rank {wanted}"))
        elif not healthy:
            why = f"none of its {len(ranks)} ranks is healthy" if wanted is None else f"rank {wanted} is not healthy"
            rejections.append(Rejection(worker.id, "RANK_UNHEALTHY", why))
        candidates += [Candidate(worker, rank.dp_rank, in_flight(worker.rank_key(rank.dp_rank))) for rank in healthy]
    return candidates, rejections


def prefer_untried(candidates: Sequence[Candidate], avoid: Iterable[WorkerId]) -> Sequence[Candidate]:
    """The candidates without those that failed this request before, unless nothing else is left."""
    tried = frozenset(avoid)
    return [candidate for candidate in candidates if candidate.worker.id not in tried] or candidates


def highest_priority(candidates: Sequence[Candidate]) -> Sequence[Candidate]:
    """The candidates whose workers have the highest priority among them."""
    highest = max(candidate.worker.priority for candidate in candidates)
    return [candidate for candidate in candidates if candidate.worker.priority == highest]


def lacks(worker: Worker, names: Iterable[str]) -> tuple[str, ...]:
    """Which of these adapters the worker does not have loaded, as far as is known."""
    facts = worker.facts
    if facts is not None and facts.applies_adapters and not facts.lists_adapters:
        return ()
    loaded = frozenset() if facts is None else frozenset(adapter.name for adapter in facts.adapters)
    return tuple(name for name in names if name not in loaded)


def embeds(worker: Worker) -> bool:
    """Whether it makes vectors, as far as is known.

    Half of a pair makes none, whatever its model: SGLang queues every request of such a server for its rendezvous,
    those for vectors too, where they would wait for ever.
    """
    return worker.worker_type is WorkerType.REGULAR and worker.facts is not None and worker.facts.can_embed


def generates(worker: Worker) -> bool:
    """Whether it makes tokens, as far as is known: one that has not been read yet may."""
    return worker.facts is None or worker.facts.can_generate


def _reject(query: Query, worker: Worker) -> Rejection | None:
    if worker.status is not WorkerStatus.READY:
        return Rejection(worker.id, "NOT_READY", f"its status is {worker.status}")
    target = target_of(query, worker)[0]
    if target is not None and worker.id != target:
        return Rejection(worker.id, "NOT_TARGET", f"the request names worker {target}")
    if query.embeds and not embeds(worker):
        return Rejection(worker.id, "CANNOT_EMBED", "it serves no embeddings")
    if not query.embeds and not generates(worker):
        return Rejection(worker.id, "CANNOT_GENERATE", "it makes embeddings, no tokens")
    if query.needs_seed and (worker.facts is None or not worker.facts.supports_seed):
        return Rejection(worker.id, "CANNOT_SEED", "its protocol carries no seed")
    if query.constraint is not None and (worker.facts is None or query.constraint not in worker.facts.constraints):
        return Rejection(worker.id, "CANNOT_CONSTRAIN", f"it does not take a constraint of kind {query.constraint}")
    return _reject_adapters(query, worker) or _reject_choices(query, worker)


def _reject_adapters(query: Query, worker: Worker) -> Rejection | None:
    if not query.adapters:
        return None
    if worker.facts is None or not worker.facts.applies_adapters:
        return Rejection(worker.id, "CANNOT_APPLY_ADAPTERS", "its engine applies no adapters")
    missing = lacks(worker, query.adapters)
    if missing:
        return Rejection(worker.id, "LACKS_ADAPTER", f"it has not loaded {', '.join(missing)}")
    return None


def most_choices(worker: Worker, model: str, temperature: float | None) -> int | None:
    """How many choices one call to it may ask for at that temperature (None = its default); None = any number."""
    facts = worker.facts
    if facts is None:
        return None
    if temperature is None:
        card = next((card for card in worker.models if card.id == model), None)
        of_card = None if card is None else card.default_sampling.get("temperature")
        temperature = facts.default_sampling.get("temperature", of_card)
    limits = (facts.max_choices, facts.max_greedy_choices if temperature == 0 else None)
    return min((limit for limit in limits if limit is not None), default=None)


def _reject_choices(query: Query, worker: Worker) -> Rejection | None:
    most = most_choices(worker, query.model, query.temperature)
    if most is None or query.choices <= most:
        return None
    return Rejection(
        worker.id, "TOO_MANY_CHOICES", f"one call to it asks for {most} of {query.choices} choices at most"
    )


def target_of(query: Query, worker: Worker) -> tuple[WorkerId | None, int | None]:
    """The worker and rank that the query names for this worker's part; None leaves it open."""
    if worker.worker_type is WorkerType.PREFILL and not query.embeds:
        return query.target_prefill_id, query.target_prefill_rank
    return query.target_worker_id, query.target_dp_rank

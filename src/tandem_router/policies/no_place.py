"""Why a query has no place now: the most telling of all that was seen, as a failure with what to do about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from tandem_router.errors import Reason
from tandem_router.model.failure import Failure
from tandem_router.model.ids import WorkerId
from tandem_router.model.request import ServingMode
from tandem_router.model.spec import WorkerType
from tandem_router.model.worker import Worker, WorkerStatus
from tandem_router.policies.contract import Candidate, Query, Rejection
from tandem_router.policies.filters import embeds, generates, lacks, target_of

__all__ = ["CANNOT_PAIR", "no_place", "unknown_model"]

CANNOT_PAIR = "CANNOT_RETURN_CONTEXT_PARAMS"
"""The reason of a rejection that no other partner would change."""


def unknown_model(model: str, workers: Mapping[WorkerId, Worker]) -> Failure:
    """MODEL_NOT_FOUND with the names that would have been found."""
    known = sorted({card.id for worker in workers.values() for card in worker.models})
    names = ", ".join(known[:10]) or "none"
    sentence = f"no worker serves model {model}" if model else "the request names no model and there is not just one"
    return Failure(Reason.MODEL_NOT_FOUND, f"{sentence}; known models: {names}", {"model": model}, "model")


def no_place(
    query: Query,
    workers: Mapping[WorkerId, Worker],
    decodes: Sequence[Candidate],
    prefills: Sequence[Candidate],
    rejections: Sequence[Rejection],
) -> Failure:
    """The failure of a query for a model that some worker serves; decodes and prefills: those that could take it."""
    serving = [worker for worker in workers.values() if worker.serves(query.model)]
    return (
        _unknown_target(query, workers)
        or _nobody_can(query, rejections)
        or _no_vectors(query, serving)
        or _no_tokens(query, serving)
        or _no_adapter(query, [worker for worker in serving if (embeds if query.embeds else generates)(worker)])
        or _not_now(query, serving, decodes, prefills, rejections)
    )


def _unknown_target(query: Query, workers: Mapping[WorkerId, Worker]) -> Failure | None:
    targets = {"target_worker": query.target_worker_id, "target_prefill_worker": query.target_prefill_id}
    for name, target in targets.items():
        if target is not None and target not in workers:
            known = {"model": query.model, "worker_id": target}
            return Failure(Reason.WORKER_NOT_FOUND, f"worker {target} does not exist", known, field=f"{name}.worker_id")
    return None


def _nobody_can(query: Query, rejections: Sequence[Rejection]) -> Failure | None:
    """What every worker that may take it is refused for."""
    reasons = {rejection.reason for rejection in rejections} - {"NOT_TARGET", "CANNOT_GENERATE"}
    metadata = {"model": query.model}
    if reasons == {"CANNOT_SEED"}:
        sentence = f"no worker of {query.model} can use a seed"
        return Failure(Reason.RUNTIME_CANNOT_SEED, sentence, metadata, "sampling.seed")
    if reasons == {"CANNOT_CONSTRAIN"}:
        sentence = f"no worker of {query.model} takes a constraint of kind {query.constraint}"
        return Failure(Reason.RUNTIME_CANNOT_CONSTRAIN, sentence, metadata, "constraint")
    return None


def _no_vectors(query: Query, serving: Sequence[Worker]) -> Failure | None:
    """Whether waiting cannot help, since every worker is known and none makes vectors, READY or not."""
    meant = [worker for worker in serving if _is_meant(query, worker)]
    if not query.embeds or not meant or any(worker.facts is None or embeds(worker) for worker in meant):
        return None
    who = f"worker {query.target_worker_id}" if query.target_worker_id is not None else f"no worker of {query.model}"
    says = "serves no embeddings" if query.target_worker_id is not None else "serves embeddings"
    return Failure(Reason.RUNTIME_CANNOT_EMBED, f"{who} {says}; halves of pairs do not", {"model": query.model})


def _no_tokens(query: Query, serving: Sequence[Worker]) -> Failure | None:
    """The same for a query that wants tokens: every worker is known, and was started for embeddings."""
    meant = [worker for worker in serving if _is_meant(query, worker)]
    if query.embeds or not meant or any(generates(worker) for worker in meant):
        return None
    metadata = {"model": query.model}
    if query.target_worker_id is not None:
        sentence = f"worker {query.target_worker_id} makes embeddings, no tokens"
        return Failure(Reason.RUNTIME_CANNOT_GENERATE, sentence, metadata, "target_worker.worker_id")
    sentence = f"no worker of {query.model} generates; they make embeddings"
    return Failure(Reason.RUNTIME_CANNOT_GENERATE, sentence, metadata, "model")


def _no_adapter(query: Query, serving: Sequence[Worker]) -> Failure | None:
    """Whether waiting cannot help, since no worker has the adapters, READY or not: both legs of a pair need them."""
    known = [worker for worker in serving if worker.facts is not None and _is_meant(query, worker)]
    if not query.adapters or not known:
        return None
    metadata = {"model": query.model, "adapters": ", ".join(query.adapters)}
    if not any(worker.facts is not None and worker.facts.applies_adapters for worker in known):
        sentence = f"no worker of {query.model} applies adapters"
        return Failure(Reason.RUNTIME_CANNOT_APPLY_ADAPTERS, sentence, metadata, "adapters")
    for index, name in enumerate(query.adapters):
        where = _missing_at(query, [worker.worker_type for worker in known if not lacks(worker, (name,))])
        if where is not None:
            sentence = f"no {where}worker of {query.model} has the adapter {name} loaded"
            return Failure(Reason.ADAPTER_NOT_FOUND, sentence, metadata, f"adapters[{index}].name")
    where = _missing_at(query, [worker.worker_type for worker in known if not lacks(worker, query.adapters)])
    if where is None:
        return None
    sentence = f"no {where}worker of {query.model} has all of the adapters loaded"
    return Failure(Reason.ADAPTER_NOT_FOUND, sentence, metadata, "adapters")


def _is_meant(query: Query, worker: Worker) -> bool:
    return target_of(query, worker)[0] in (None, worker.id)


def _missing_at(query: Query, kinds: Sequence[WorkerType]) -> str | None:
    """The part of the work that none of these worker types can do, as an adjective; None = they can serve the query."""
    wants_pair = query.serving_mode is ServingMode.DISAGGREGATED or query.target_prefill_id is not None
    if not wants_pair and WorkerType.REGULAR in kinds:
        return None
    if query.serving_mode is ServingMode.AGGREGATED:
        return "regular "
    parts = [kind for kind in (WorkerType.PREFILL, WorkerType.DECODE) if kind in kinds]
    if len(parts) == 2:
        return None
    if not parts:
        return ""
    return "decode " if parts == [WorkerType.PREFILL] else "prefill "


def _not_now(
    query: Query,
    serving: Sequence[Worker],
    decodes: Sequence[Candidate],
    prefills: Sequence[Candidate],
    rejections: Sequence[Rejection],
) -> Failure:
    metadata = {"model": query.model}
    if decodes and prefills and query.serving_mode is not ServingMode.AGGREGATED:
        clashes = [rejection for rejection in rejections if rejection.reason in ("INCOMPATIBLE", CANNOT_PAIR)]
        never = bool(clashes) and all(clash.reason == CANNOT_PAIR for clash in clashes)
        reason = Reason.RUNTIME_CANNOT_RETURN_CONTEXT_PARAMS if never else Reason.NO_COMPATIBLE_PAIR
        why = clashes[0].sentence if clashes else ""
        return Failure(reason, f"no prefill worker of {query.model} fits a decode worker: {why}", metadata)
    sentence = f"no worker of {query.model} can take it now ({_counted(serving)})"
    return Failure(Reason.NO_READY_WORKER, sentence, metadata)


def _counted(serving: Sequence[Worker]) -> str:
    """ "1 prefill READY, 2 regular FAILED": without their status those that never registered count like the others."""
    counts = Counter((worker.worker_type, worker.status) for worker in serving)
    return ", ".join(f"{count} {kind.lower()} {status}" for (kind, status), count in sorted(counts.items(), key=_place))


def _place(counted: tuple[tuple[WorkerType, WorkerStatus], int]) -> tuple[int, int]:
    kind, status = counted[0]
    return list(WorkerType).index(kind), list(WorkerStatus).index(status)

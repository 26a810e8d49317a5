"""The models that the fleet serves, as clients see them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from tandem_router.model.ids import WorkerId
from tandem_router.model.spec import ModelCard, WorkerType
from tandem_router.model.worker import Worker, WorkerStatus

__all__ = ["ServedModel", "served_models"]


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model and who serves it."""

    card: ModelCard
    """Of the worker registered first, with the aliases of all."""
    worker_ids: tuple[WorkerId, ...]
    """Oldest first."""
    ready_regular: int
    ready_prefill: int
    ready_decode: int

    @property
    def is_ready(self) -> bool:
        """Whether READY workers could take a request; whether prefill and decode fit is the policy's to say."""
        return self.ready_regular > 0 or (self.ready_prefill > 0 and self.ready_decode > 0)


def served_models(workers: Iterable[Worker]) -> tuple[ServedModel, ...]:
    """Every model of `workers`, by id, in the order in which they were registered."""
    found: dict[str, ServedModel] = {}
    for worker in workers:
        if worker.status is WorkerStatus.FAILED:
            continue
        ready = worker.status is WorkerStatus.READY
        for card in worker.models:
            known = found.get(card.id) or ServedModel(card, (), 0, 0, 0)
            aliases = (*known.card.aliases, *(name for name in card.aliases if name not in known.card.aliases))
            found[card.id] = ServedModel(
                card=replace(known.card, aliases=aliases),
                worker_ids=(*known.worker_ids, worker.id),
                ready_regular=known.ready_regular + (ready and worker.worker_type is WorkerType.REGULAR),
                ready_prefill=known.ready_prefill + (ready and worker.worker_type is WorkerType.PREFILL),
                ready_decode=known.ready_decode + (ready and worker.worker_type is WorkerType.DECODE),
            )
    return tuple(found.values())

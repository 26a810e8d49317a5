"""What clients are told of a model, put together from the workers that serve it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tandem.v1 import kv_pb2
from tandem.v1 import model_pb2 as pb
from tandem_router.model.spec import ModelCard, WorkerType
from tandem_router.model.worker import Worker, WorkerStatus
from tandem_router.wire.connector import connector_pb
from tandem_router.wire.model_card import card_pb
from tandem_router.wire.sampling import default_sampling_pb
from tandem_router.wire.scalars import timestamp_pb

__all__ = ["Fits", "model_pb"]

Fits = Callable[[Worker, Worker], bool]
"""Whether a prefill and a decode worker can be a pair."""


def model_pb(card: ModelCard, workers: Sequence[Worker], fits: Fits) -> pb.Model:
    """The message of a model and its workers, oldest first."""
    ready = [worker for worker in workers if worker.status is WorkerStatus.READY]
    by_type = {
        kind: [worker for worker in ready if worker.worker_type is kind]
        for kind in (WorkerType.REGULAR, WorkerType.PREFILL, WorkerType.DECODE)
    }
    connectors = {
        _connector(prefill)
        for prefill in by_type[WorkerType.PREFILL]
        if any(fits(prefill, decode) for decode in by_type[WorkerType.DECODE])
    }
    defaults = [worker.facts.default_sampling for worker in workers if worker.facts is not None]
    agreed = defaults[0] if defaults and all(one == defaults[0] for one in defaults) else {}
    return pb.Model(
        id=card.id,
        card=card_pb(card),
        available=bool(by_type[WorkerType.REGULAR] or connectors),
        capacity=pb.ModelCapacity(
            regular_workers=len(by_type[WorkerType.REGULAR]),
            prefill_workers=len(by_type[WorkerType.PREFILL]),
            decode_workers=len(by_type[WorkerType.DECODE]),
            connectors=sorted(connectors),
        ),
        default_sampling=default_sampling_pb(agreed),
        create_time=timestamp_pb(min((worker.created_at_s for worker in workers), default=0.0)),
    )


def _connector(prefill: Worker) -> kv_pb2.KvConnector.ValueType:
    facts = prefill.facts
    name = prefill.spec.kv_connector or (facts.kv_connector if facts is not None else None)
    return connector_pb(None if facts is None else facts.handshake, name)

"""Whether two workers can be one pair, decided before any request: an incompatible pair is a condition, not a hang."""

from __future__ import annotations

from tandem_router.errors import Reason
from tandem_router.handshake.build import handshake_for, why_none
from tandem_router.model.failure import Failure
from tandem_router.model.pairing import KvRole
from tandem_router.model.worker import Worker, WorkerFacts

__all__ = ["incompatibility"]

_CAN_PRODUCE = frozenset({None, KvRole.PRODUCER, KvRole.BOTH})
_CAN_CONSUME = frozenset({None, KvRole.CONSUMER, KvRole.BOTH})


def incompatibility(prefill: Worker, decode: Worker) -> Failure | None:
    """Why `prefill` and `decode` cannot be paired, or None when they can."""
    if prefill.facts is None or decode.facts is None:
        return _no("one of the workers has not been read yet")
    source, target = prefill.facts, decode.facts
    for worker, facts in ((prefill, source), (decode, target)):
        if handshake_for(facts.handshake, facts.kv_connector) is None:
            reason, why = why_none(facts)
            return Failure(reason, f"worker {worker.id} ({facts.runtime_type}) {why}", {"worker_id": worker.id})
    models = {name for card in prefill.models for name in (card.id, *card.aliases)}
    if not any(name in models for card in decode.models for name in (card.id, *card.aliases)):
        return _no("they serve different models", prefill=source.model_id, decode=target.model_id)
    if source.handshake is not target.handshake:
        return _no("they speak different handshakes", prefill=str(source.handshake), decode=str(target.handshake))
    return _protocols_differ(source, target) or _roles_clash(source, target) or _cannot_meet(source)


def _protocols_differ(source: WorkerFacts, target: WorkerFacts) -> Failure | None:
    """An operator-set pairing protocol that is equal on both sides vouches for what follows from it."""
    if source.pairing_protocol is not None and target.pairing_protocol is not None:
        if source.pairing_protocol != target.pairing_protocol:
            return _no("pairing_protocol differs", prefill=source.pairing_protocol, decode=target.pairing_protocol)
        return None
    for name, ours, theirs in (
        ("kv_connector", source.kv_connector, target.kv_connector),
        ("kv_block_size", source.kv_block_size, target.kv_block_size),
        ("kv_dtype", source.kv_dtype, target.kv_dtype),
    ):
        if ours is not None and theirs is not None and ours != theirs:
            return _no(f"{name} differs", prefill=str(ours), decode=str(theirs))
    return None


def _roles_clash(source: WorkerFacts, target: WorkerFacts) -> Failure | None:
    if source.kv_role not in _CAN_PRODUCE:
        return _no("the prefill worker's kv_role does not produce KV blocks", prefill=str(source.kv_role))
    if target.kv_role not in _CAN_CONSUME:
        return _no("the decode worker's kv_role does not consume KV blocks", decode=str(target.kv_role))
    return None


def _cannot_meet(source: WorkerFacts) -> Failure | None:
    """What the handshake needs of a prefill worker and this one has not."""
    handshake = handshake_for(source.handshake, source.kv_connector)
    lacking = None if handshake is None else handshake.shortcoming(source)
    return None if lacking is None else _no(lacking)


def _no(sentence: str, **metadata: str) -> Failure:
    values = ", ".join(f"{key} has {value}" for key, value in metadata.items())
    return Failure(Reason.NO_COMPATIBLE_PAIR, f"{sentence} ({values})" if values else sentence, metadata)

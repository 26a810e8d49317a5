"""From a plan to what each engine is sent, and to who is said to have served."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tandem_router.core.default_sampling import with_defaults
from tandem_router.handshake.contract import Handshake
from tandem_router.model.ids import PairId
from tandem_router.model.pairing import HandshakeKind, LegRole
from tandem_router.model.request import LegRequest
from tandem_router.model.stream import ServedBy
from tandem_router.policies.contract import Candidate

__all__ = ["defaulted", "leg_request", "who_serves"]


def defaulted(leg: LegRequest, decode: Candidate, model: str, server: Mapping[str, float]) -> LegRequest:
    """The common part of an attempt with the defaults of whoever generates, so that both legs draw alike."""
    worker = decode.worker
    card = next((card for card in worker.models if card.id == model), None)
    of_card = {} if card is None else card.default_sampling
    of_worker = {} if worker.facts is None else worker.facts.default_sampling
    return replace(leg, sampling=with_defaults(leg.sampling, server, of_card, of_worker))


def leg_request(
    common: LegRequest,
    role: LegRole,
    handshake: Handshake | None,
    prefill: Candidate | None,
    decode: Candidate,
    room: int | None,
    transfer_params: str | None,
) -> LegRequest:
    """One leg of an attempt, from the request's common part; `transfer_params` is what a handoff's prefill returned."""
    if handshake is None or prefill is None:
        return replace(common, kind=HandshakeKind.AGGREGATE, role=role, dp_rank=_rank(decode))
    source, target = prefill.worker, decode.worker
    common = replace(common, kind=handshake.kind, role=role)
    if role is LegRole.PREFILL:
        common = replace(common, dp_rank=_rank(prefill))
        return handshake.prefill_leg(common, prefill=source, decode=target, room=room)
    common = replace(common, dp_rank=_rank(decode))
    return handshake.decode_leg(common, prefill=source, decode=target, room=room, transfer_params=transfer_params)


def who_serves(
    pair_id: PairId, kind: HandshakeKind, prefill: Candidate | None, decode: Candidate, room: int | None
) -> ServedBy:
    """The workers of an attempt as the client is told."""
    facts = decode.worker.facts
    return ServedBy(
        pair_id=pair_id,
        kind=kind,
        decode_worker_id=decode.worker.id,
        decode_dp_rank=decode.dp_rank,
        prefill_worker_id=None if prefill is None else prefill.worker.id,
        prefill_dp_rank=None if prefill is None else prefill.dp_rank,
        room=room,
        connector=None if prefill is None or facts is None else facts.kv_connector,
    )


def _rank(candidate: Candidate) -> int | None:
    """The rank as sent: presence matters, so 0 is sent too, but not to an engine that has one rank only."""
    facts = candidate.worker.facts
    return candidate.dp_rank if facts is not None and facts.dp_size > 1 else None

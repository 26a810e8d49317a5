"""From a plan to what each engine is sent, and to who is said to have served."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tandem_router.core.default_sampling import with_defaults
from tandem_router.handshake.contract import Handshake, Link
from tandem_router.model.ids import PairId
from tandem_router.model.pairing import HandshakeKind, LegRole
from tandem_router.model.request import LegRequest
from tandem_router.model.stream import ServedBy
from tandem_router.policies.contract import Candidate, Plan

__all__ = ["defaulted", "leg_request", "link_of", "sent_rank", "who_serves"]


def defaulted(leg: LegRequest, decode: Candidate, model: str, server: Mapping[str, float]) -> LegRequest:
    """The common part of an attempt with the defaults of whoever generates, so that both legs draw alike."""
    worker = decode.worker
    card = next((card for card in worker.models if card.id == model), None)
    of_card = {} if card is None else card.default_sampling
    of_worker = {} if worker.facts is None else worker.facts.default_sampling
    return replace(leg, sampling=with_defaults(leg.sampling, server, of_card, of_worker))


def link_of(plan: Plan, room: int | None, transfer_id: str | None, returned: str | None) -> Link | None:
    """What ties the legs of a plan, None where one worker does both phases. returned: what prefill's end carried."""
    if plan.handshake is None or plan.prefill is None:
        return None
    return Link(plan.prefill.worker, plan.prefill.dp_rank, room, transfer_id, returned)


def leg_request(
    common: LegRequest, role: LegRole, handshake: Handshake | None, candidate: Candidate, link: Link | None
) -> LegRequest:
    """One leg of an attempt on `candidate`, from the request's common part."""
    common = replace(common, role=role, dp_rank=sent_rank(candidate))
    if handshake is None or link is None:
        return replace(common, kind=HandshakeKind.AGGREGATE)
    common = replace(common, kind=handshake.kind)
    if role is LegRole.PREFILL:
        return handshake.prefill_leg(common, link)
    return handshake.decode_leg(common, link)


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


def sent_rank(candidate: Candidate) -> int | None:
    """The rank as sent: presence matters, so 0 is sent too, but not to an engine that has one rank only."""
    facts = candidate.worker.facts
    return candidate.dp_rank if facts is not None and facts.dp_size > 1 else None

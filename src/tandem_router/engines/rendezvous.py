"""What the dialects that meet at a bootstrap room share: the room's checks and the words of a failed transfer."""

from __future__ import annotations

from dataclasses import replace

from tandem_router.engines.guards import INT32_MAX, engine_status_failure, refuse_broken_leg
from tandem_router.errors import Code, Reason
from tandem_router.model.failure import EngineFailure
from tandem_router.model.pairing import HandshakeKind, Rendezvous
from tandem_router.model.request import LegRequest
from tandem_router.model.spec import WorkerType
from tandem_router.model.worker import WorkerFacts

__all__ = ["meeting_of", "rendezvous_status_failure"]

_TRANSFER_WORDS = ("kv transfer", "kvtransfer", "kv_transfer", "bootstrap", "transfer failed", "disaggregation")


def meeting_of(leg: LegRequest, facts: WorkerFacts | None, engine: str) -> Rendezvous | None:
    """Where the leg's pair meets, or None for an aggregated leg.

    Raises INTERNAL_ERROR for a leg without a room where the worker waits for one (a prefill or decode worker of SGLang
    dies of it), for an endpoint that is none, and for a room outside int32, the narrowest wire of all.
    """
    if leg.kind is HandshakeKind.HANDOFF:
        raise refuse_broken_leg(leg, f"{engine} has no handoff")
    if leg.kind is HandshakeKind.AGGREGATE:
        if facts is not None and facts.disaggregation_mode in (WorkerType.PREFILL, WorkerType.DECODE):
            raise refuse_broken_leg(leg, f"a {facts.disaggregation_mode} worker of {engine} serves no request alone")
        return None
    meeting = leg.handoff
    if not isinstance(meeting, Rendezvous):
        raise refuse_broken_leg(leg, f"a prefill or decode worker of {engine} needs a room")
    if not 0 < meeting.room <= INT32_MAX:
        raise refuse_broken_leg(leg, f"room {meeting.room} does not fit into int32")
    if not meeting.host or not 0 < meeting.port <= 65535:
        raise refuse_broken_leg(leg, f"bootstrap endpoint {meeting.host!r}:{meeting.port} is not one")
    if ":" in meeting.host and not meeting.host.startswith("["):
        # Engines put ":port" behind it as it is; only newer ones bracket a bare IPv6 address (smg 13.1, trap 3).
        return replace(meeting, host=f"[{meeting.host}]")
    return meeting


def rendezvous_status_failure(leg: LegRequest, code: Code, details: str) -> EngineFailure:
    """A status in which a rendezvous leg names the transfer is the transfer's failure."""
    lowered = details.lower()
    if (
        leg.kind is HandshakeKind.RENDEZVOUS
        and code in (Code.INTERNAL, Code.ABORTED, Code.UNAVAILABLE, Code.UNKNOWN)
        and any(word in lowered for word in _TRANSFER_WORDS)
    ):
        return EngineFailure(Reason.KV_TRANSFER_FAILED, f"the engine answered {code.name}: {details}", code=code)
    return engine_status_failure(code, details)

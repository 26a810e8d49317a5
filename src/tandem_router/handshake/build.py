"""The one factory: which handshake two workers speak, and why one that speaks none cannot be paired."""

from __future__ import annotations

from collections.abc import Mapping

from tandem_router.errors import Reason
from tandem_router.handshake.context_phase import why_not
from tandem_router.handshake.contract import Handshake
from tandem_router.handshake.mooncake import MooncakeHandshake
from tandem_router.handshake.relayed import RelayedHandshake
from tandem_router.handshake.rendezvous import RendezvousHandshake
from tandem_router.model.pairing import AbortInTransfer, HandshakeKind
from tandem_router.model.worker import WorkerFacts

__all__ = ["handshake_for", "why_none"]

_RENDEZVOUS = RendezvousHandshake()
_NIXL = RelayedHandshake(AbortInTransfer.SAFE, decode_outwaits_prefill=False)
_MOONCAKE = MooncakeHandshake()
_UNDECLARED = RelayedHandshake(AbortInTransfer.DEFER, decode_outwaits_prefill=True)
_PASSTHROUGH = RelayedHandshake(AbortInTransfer.DEFER, decode_outwaits_prefill=True, returns_params=False)
_STORE = RelayedHandshake(AbortInTransfer.DEFER, decode_outwaits_prefill=False, returns_params=False)

_BY_CONNECTOR: Mapping[tuple[HandshakeKind, str | None], Handshake] = {
    (HandshakeKind.HANDOFF, "nixlconnector"): _NIXL,
    (HandshakeKind.HANDOFF, "nixlpullconnector"): _NIXL,
    (HandshakeKind.HANDOFF, "nixlpushconnector"): _UNDECLARED,
    (HandshakeKind.HANDOFF, "mooncakeconnector"): _MOONCAKE,
    (HandshakeKind.HANDOFF, "mooncakestoreconnector"): _STORE,
    (HandshakeKind.HANDOFF, "hf3fskvconnector"): _STORE,
    (HandshakeKind.HANDOFF, "exampleconnector"): _STORE,
    (HandshakeKind.HANDOFF, "sharedstorageconnector"): _STORE,
    (HandshakeKind.HANDOFF, ""): _UNDECLARED,
}
"""Connectors whose habits are known, lower-cased, and a worker that names none; all others go by kind.

NixlPullConnector is NixlConnector by another name, NixlPushConnector returns parameters as it does (vLLM 0.32).
"""

_BY_KIND: Mapping[HandshakeKind, Handshake] = {
    HandshakeKind.RENDEZVOUS: _RENDEZVOUS,
    HandshakeKind.HANDOFF: _PASSTHROUGH,
}


def handshake_for(kind: HandshakeKind | None, connector: str | None) -> Handshake | None:
    """The handshake of a protocol's kind and KV connector, or None where such workers cannot be paired.

    A connector that is not in the table is passed through: what prefill returns, if anything, goes to decode as it is.
    """
    if kind is None:
        return None
    return _BY_CONNECTOR.get((kind, (connector or "").lower())) or _BY_KIND.get(kind)


def why_none(facts: WorkerFacts) -> tuple[Reason, str]:
    """Why a worker for which `handshake_for` has nothing cannot be one of a pair: the reason and the end of a sentence
    that begins with the worker.
    """
    return why_not(facts.runtime_type) or (
        Reason.NO_COMPATIBLE_PAIR,
        "speaks no handshake: its engine has none, or was started without a KV connector; register it as REGULAR",
    )

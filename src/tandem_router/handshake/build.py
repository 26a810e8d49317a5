"""The one factory: which handshake two workers speak."""

from __future__ import annotations

from collections.abc import Mapping

from tandem_router.handshake.contract import Handshake
from tandem_router.handshake.relayed import RelayedHandshake
from tandem_router.handshake.rendezvous import RendezvousHandshake
from tandem_router.model.pairing import AbortInTransfer, HandshakeKind

__all__ = ["handshake_for"]

_RENDEZVOUS = RendezvousHandshake()
_NIXL = RelayedHandshake(AbortInTransfer.SAFE)
_PASSTHROUGH = RelayedHandshake(AbortInTransfer.DEFER)

_BY_CONNECTOR: Mapping[tuple[HandshakeKind, str | None], Handshake] = {
    (HandshakeKind.HANDOFF, "NixlConnector"): _NIXL,
}
"""Connectors whose legs carry something of their own; all others go by kind."""

_BY_KIND: Mapping[HandshakeKind, Handshake] = {
    HandshakeKind.RENDEZVOUS: _RENDEZVOUS,
    HandshakeKind.HANDOFF: _PASSTHROUGH,
}


def handshake_for(kind: HandshakeKind | None, connector: str | None) -> Handshake | None:
    """The handshake of a protocol's kind and KV connector, or None where such workers cannot be paired.

    A connector that is not in the table is passed through: what prefill returns goes to decode as it is.
    """
    if kind is None:
        return None
    return _BY_CONNECTOR.get((kind, connector)) or _BY_KIND.get(kind)

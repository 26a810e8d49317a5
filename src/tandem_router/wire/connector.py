"""The kind of a KV connector, told from how the legs meet and from the engine's own name for it."""

from __future__ import annotations

from tandem.v1 import kv_pb2 as pb
from tandem_router.model.pairing import HandshakeKind

__all__ = ["connector_of_name", "connector_pb"]

_NAMES = {"nixlconnector": pb.KV_CONNECTOR_NIXL, "mooncakeconnector": pb.KV_CONNECTOR_MOONCAKE}
"""vLLM's class names, lower-cased."""


def connector_pb(kind: HandshakeKind, name: str | None) -> pb.KvConnector.ValueType:
    """The connector of a pair; UNSPECIFIED where no KV moves."""
    if kind is HandshakeKind.AGGREGATE:
        return pb.KV_CONNECTOR_UNSPECIFIED
    if kind is HandshakeKind.RENDEZVOUS:
        return pb.KV_CONNECTOR_RENDEZVOUS
    return _NAMES.get((name or "").lower(), pb.KV_CONNECTOR_PASSTHROUGH)


def connector_of_name(name: str | None, *, has_bootstrap: bool) -> pb.KvConnector.ValueType:
    """The connector of one worker; UNSPECIFIED where it named none and has no bootstrap server."""
    if name is None:
        return pb.KV_CONNECTOR_RENDEZVOUS if has_bootstrap else pb.KV_CONNECTOR_UNSPECIFIED
    return _NAMES.get(name.lower(), pb.KV_CONNECTOR_RENDEZVOUS if has_bootstrap else pb.KV_CONNECTOR_PASSTHROUGH)

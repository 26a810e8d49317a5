"""The kind of a KV connector, told from how the legs meet and from the engine's own name for it."""

from __future__ import annotations

from tandem.v1 import kv_pb2 as pb
from tandem_router.model.pairing import HandshakeKind

__all__ = ["connector_pb"]

_NAMES = {"nixlconnector": pb.KV_CONNECTOR_NIXL, "mooncakeconnector": pb.KV_CONNECTOR_MOONCAKE}
"""vLLM's class names, lower-cased."""


def connector_pb(kind: HandshakeKind | None, name: str | None) -> pb.KvConnector.ValueType:
    """The connector of a pair, or of a worker that could be in one; UNSPECIFIED where no KV moves."""
    if kind is None or kind is HandshakeKind.AGGREGATE:
        return pb.KV_CONNECTOR_UNSPECIFIED
    if kind is HandshakeKind.RENDEZVOUS:
        return pb.KV_CONNECTOR_RENDEZVOUS
    return _NAMES.get((name or "").lower(), pb.KV_CONNECTOR_PASSTHROUGH)

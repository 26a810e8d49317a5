"""Which of a client's metadata go on to workers: an allow-list, because a worker is not who the client talked to.

Credentials never pass, whatever the list says, and neither do gRPC's own keys: a worker's call has its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["DEFAULT", "ForwardedMetadata", "Metadata"]

Metadata = Sequence[tuple[str, str | bytes]]

DEFAULT = "traceparent,tracestate,x-request-id"
REQUEST_ID = "x-request-id"
TRACEPARENT = "traceparent"
MAX_BYTES = 4096
"""Of keys and values that are forwarded for one call. Servers with grpcio's defaults refuse calls at random from 8 KiB
of metadata on, and the worker's credentials and gRPC's own keys need room too."""
MAX_TRACEPARENT = 256
"""Characters; one has 55 (W3C Trace Context, version 00), later versions may append."""

_KEY = re.compile(r"[0-9a-z_.-]{1,128}")
_NEVER = frozenset(
    {"authorization", "proxy-authorization", "cookie", "set-cookie", "x-api-key", "te", "content-type", "user-agent",
     "host", "connection"}
)  # fmt: skip


class ForwardedMetadata:
    """An allow-list of metadata keys."""

    def __init__(self, keys: str = DEFAULT) -> None:
        """keys: separated by commas, "" forwards nothing. Raises ValueError for one that must not or cannot pass."""
        names = [name.strip().lower() for name in keys.split(",") if name.strip()]
        for name in names:
            if not _KEY.fullmatch(name):
                raise ValueError(f'"{name}" is no metadata key')
            if name in _NEVER or name.startswith("grpc-"):
                raise ValueError(f'"{name}" is never forwarded to workers')
            if name.endswith("-bin"):
                raise ValueError(f'"{name}" is binary, and only text is forwarded')
        self._keys = frozenset(names)

    def of(self, metadata: Metadata, request_id: str) -> tuple[tuple[str, str], ...]:
        """What goes on of a call's metadata, in its order, without traceparent, which the router may replace.

        The request's id goes on as x-request-id unless the client has sent one or the list does not have it. What would
        exceed MAX_BYTES stays behind.
        """
        found = [
            (key, value)
            for key, value in metadata
            if key in self._keys and key != TRACEPARENT and isinstance(value, str)
        ]
        if REQUEST_ID in self._keys and all(key != REQUEST_ID for key, _ in found):
            found.insert(0, (REQUEST_ID, request_id))
        kept, size = [], 0
        for key, value in found:
            size += len(key) + len(value)
            if size > MAX_BYTES:
                break
            kept.append((key, value))
        return tuple(kept)

    def traceparent(self, metadata: Metadata) -> str | None:
        """The client's trace context, if it has sent one as text; None too where it is too long or not to go on."""
        value = dict(metadata).get(TRACEPARENT) if TRACEPARENT in self._keys else None
        return value if isinstance(value, str) and len(value) <= MAX_TRACEPARENT else None

"""Reads why a connection was not made, as grpc's core words it, and says it so that an operator knows what to change.

The wording is grpc's own and may change, so little of it is relied on: a failed handshake that is not recognised is
told as a failed handshake, with grpc's words. Seen with grpcio 1.85; 1.81 writes "Ssl handshake failed" for "Tls".
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from urllib.parse import urlsplit

from tandem_router.errors import Code, Reason
from tandem_router.model.failure import EngineFailure
from tandem_router.transport.tls import tls_failure

__all__ = ["connect_failure", "speaks_tls", "unreachable"]

_ASK_S = 0.5
_SAID = re.compile(r"(?:.*last error: )?(?:[A-Z_]+: )?(.*)", re.DOTALL)
"""Without what pick_first and the status' own name put before it."""

_HANDSHAKE = (
    ("wrong_version_number", "the port does not speak TLS; use grpc:// or turn TLS on at the worker"),
    ("http_request", "the port does not speak TLS; use grpc:// or turn TLS on at the worker"),
    ("has expired", "the worker's certificate has expired"),
    ("not yet valid", "the worker's certificate is not valid yet"),
    (
        "hostname verification",
        "the worker's certificate is for another name; state channel.tls_server_name or use the URL's right host",
    ),
    (
        "certificate_verify_failed",
        "the worker's certificate is not signed by a trusted authority; give its CA as tls_ca_pem or worker_tls_ca",
    ),
    ("certificate_required", "the worker wants a client certificate"),
    ("alert_unknown_ca", "the worker does not trust the client certificate"),
    ("alert_bad_certificate", "the worker does not accept the client certificate"),
    ("alert_certificate_expired", "the client certificate has expired"),
    (
        "create security handshaker",
        "the CA, client certificate or key is no PEM that can be used, or the key is not the certificate's",
    ),
)
"""In order: the first whose words occur. "Invalid certificate verification context" ends some and says nothing."""
_IS_HANDSHAKE = ("handshake failed", "verification check failed", "security handshaker", "ssl_error")
_ENDED = ("socket closed", "connection reset", "broken pipe", "endpoint closing", "recvmsg", "stream removed")


async def connect_failure(url: str, details: str, *, has_certificate: bool) -> EngineFailure:
    """What `details`, the status message of a call that found no connection, means for a worker at `url`.

    has_certificate: whether a client certificate was offered.
    """
    match = _SAID.fullmatch(details)
    said = (match[1] if match else details)[:300]
    lowered = said.lower()
    is_secure = urlsplit(url).scheme == "grpcs"
    if is_secure and any(word in lowered for word in _IS_HANDSHAKE):
        meaning = next((meaning for word, meaning in _HANDSHAKE if word in lowered), "the TLS handshake failed")
        return tls_failure(f"{url}: {meaning} ({said})")
    if any(word in lowered for word in _ENDED):
        if is_secure and "handshake read failed" not in lowered:
            # With TLS 1.3 the client's handshake is over before the server has judged the client's certificate.
            wants = "does not accept the client certificate" if has_certificate else "may want a client certificate"
            return tls_failure(f"{url}: the worker ended the connection after the TLS handshake: it {wants} ({said})")
        if not is_secure and await speaks_tls(url):
            return tls_failure(f"{url}: the port speaks TLS; use grpcs:// ({said})")
        return unreachable(url, f"the connection broke while it was being made ({said})")
    return unreachable(url, f"the connection was refused or broke while it was being made ({said})")


def unreachable(url: str, why: str) -> EngineFailure:
    """Nothing was sent, because there was no connection to send it over."""
    return EngineFailure(
        Reason.WORKER_UNREACHABLE, f"{url}: {why}", code=Code.UNAVAILABLE, was_sent=False, connection_lost=True
    )


async def speaks_tls(url: str) -> bool:
    """Whether a TLS handshake succeeds there; whose certificate it is does not matter, for nothing is said over it."""
    parts = urlsplit(url)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        async with asyncio.timeout(_ASK_S):
            _, writer = await asyncio.open_connection(parts.hostname, parts.port, ssl=context)
    except (OSError, TimeoutError):  # ssl.SSLError is an OSError
        return False
    writer.close()
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(_ASK_S):
            await writer.wait_closed()
    return True

"""PEM at the door: what TLS could not use later is refused here, by its field's path and without a byte of it."""

from __future__ import annotations

import base64
import binascii
import re
import ssl

from tandem.v1 import worker_spec_pb2
from tandem_router.wire.checks import invalid, present

__all__ = ["certificates", "private_key"]

_MOST_BYTES = 1024 * 1024
"""Four times the bundle of public authorities that systems ship."""
_KEY = re.compile(
    rb"-----BEGIN ((?:RSA |EC )?PRIVATE KEY|ENCRYPTED PRIVATE KEY)-----\s(.*?)-----END \1-----", re.DOTALL
)
_DER_SEQUENCE = 0x30


def certificates(message: worker_spec_pb2.WorkerCredentials, path: str) -> bytes | None:
    """One or more certificates; None where the field is absent, empty where it is empty. Raises INVALID_REQUEST."""
    value = _value(message, path)
    if not value:
        return value
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        # Reads every certificate in it, as the handshake will; the context itself is not used.
        context.load_verify_locations(cadata=value.decode("ascii"))
    except (ssl.SSLError, UnicodeDecodeError, ValueError):
        raise invalid(path, "It is not PEM with at least one X.509 certificate.") from None
    if b"PRIVATE KEY-----" in value:
        raise invalid(path, "It holds a private key; that belongs in tls_private_key_pem.")
    return value


def private_key(message: worker_spec_pb2.WorkerCredentials, path: str) -> bytes | None:
    """A private key; None where the field is absent, empty where it is empty. Raises INVALID_REQUEST."""
    value = _value(message, path)
    if not value:
        return value
    found = _KEY.search(value)
    if found is None:
        raise invalid(path, "It is not PEM with a private key.")
    kind, body = found.groups()
    if kind.startswith(b"ENCRYPTED") or b"Proc-Type:" in body:
        raise invalid(path, "The key is encrypted, and there is no passphrase to open it with.")
    try:
        der = base64.b64decode(b"".join(body.split()), validate=True)
    except binascii.Error:
        der = b""
    if not der or der[0] != _DER_SEQUENCE:
        raise invalid(path, "It is not PEM with a private key.")
    return value


def _value(message: worker_spec_pb2.WorkerCredentials, path: str) -> bytes | None:
    name = path.rpartition(".")[2]
    if not present(message, name):
        return None
    value = bytes(getattr(message, name))
    if len(value) > _MOST_BYTES:
        raise invalid(path, f"It has {len(value)} bytes and may have at most {_MOST_BYTES}.")
    return value

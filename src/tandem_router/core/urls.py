"""Worker addresses in one spelling, so that two ways to write an address are one worker.

Canonical: `scheme://host:port` with scheme and host in lower case, an IPv6 address compressed and in brackets, the port
without leading zeros. The URL is made canonical before it is reserved; a rival that reserved first polled ids that
answered 404 for ever (smg #1533).
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from tandem_router.errors import Reason, TandemError

__all__ = ["Address", "canonical_url", "split_url"]

_SCHEMES = ("grpc", "grpcs")
_FIELD = "spec.url"
_MAX_LENGTH = 2048
"""Longer than any host name (253) with room for a scheme and port; keeps messages and indexes bounded."""

_SHAPE = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<host>\[[^\]]*\]|[^:/?#@\[\]]*)(?P<rest>.*)", re.DOTALL)
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_IPV4_LIKE = re.compile(r"[0-9.]+")


@dataclass(frozen=True, slots=True)
class Address:
    """The parts of a canonical URL."""

    scheme: str
    host: str
    """Without brackets."""
    port: int
    """1..65535."""


def canonical_url(text: str) -> str:
    """The one spelling of a worker's address.

    Raises TandemError(INVALID_WORKER_URL) on field "spec.url" when the scheme is not grpc or grpcs, the host is missing
    or malformed, the port is missing or outside 1..65535, or there is user info, a path, a query or a fragment.
    Idempotent: canonical_url(canonical_url(x)) == canonical_url(x).
    """
    address = _parse(text)
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"{address.scheme}://{host}:{address.port}"


def split_url(canonical: str) -> Address:
    """The parts of a URL that `canonical_url` made; raises as it does."""
    return _parse(canonical)


def _parse(text: str) -> Address:
    if len(text) > _MAX_LENGTH:
        raise _invalid(f"the URL is {len(text)} characters long, more than {_MAX_LENGTH}")
    if any(character <= " " or character == "\x7f" for character in text):
        raise _invalid("the URL holds a space or a control character")
    match = _SHAPE.fullmatch(text)
    if match is None:
        if "@" in text:
            raise _invalid("the URL must not hold user info; credentials travel in WorkerCredentials")
        raise _invalid("the URL is not scheme://host:port")
    scheme = match["scheme"].lower()
    if scheme not in _SCHEMES:
        raise _invalid(f"scheme {scheme!r} is not one of {', '.join(_SCHEMES)}")
    host, rest = match["host"], match["rest"]
    if not host:
        raise _invalid("the URL names no host")
    if "@" in rest:
        raise _invalid("the URL must not hold user info; credentials travel in WorkerCredentials")
    if not rest.startswith(":"):
        raise _invalid("the URL names no port")
    digits = rest[1:].removesuffix("/")
    if re.fullmatch(r"0*[0-9]{1,5}", digits) is None:
        if any(mark in digits for mark in "/?#"):
            raise _invalid("the URL must not hold a path, a query or a fragment")
        raise _invalid("the URL's port is not a number")
    port = int(digits)
    if not 1 <= port <= 65535:
        raise _invalid(f"port {port} is not in 1..65535")
    return Address(scheme, _host(host), port)


def _host(text: str) -> str:
    if text.startswith("["):
        try:
            address = ipaddress.IPv6Address(text[1:-1])
        except ValueError:
            raise _invalid(f"{text} is not an IPv6 address") from None
        if address.scope_id is not None:
            # A zone names an interface of one machine, which is nothing that several routers could share.
            raise _invalid(f"{text} is not an IPv6 address without a zone")
        return str(address)
    if _IPV4_LIKE.fullmatch(text):
        try:
            return str(ipaddress.IPv4Address(text))
        except ValueError:
            raise _invalid(f"{text} is not an IPv4 address") from None
    # A name that ends in a dot is the same host without search list; keep one spelling.
    name = text.lower().removesuffix(".")
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in name.split(".")):
        raise _invalid(f"{text!r} is not a host name")
    return name


def _invalid(sentence: str) -> TandemError:
    return TandemError(Reason.INVALID_WORKER_URL, sentence, field=_FIELD)

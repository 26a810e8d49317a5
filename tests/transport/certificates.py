"""Certificates of a small world: an authority, workers and clients that it signed, and files that can be rotated."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

import grpc
import trustme

from tandem_router.transport.tls import TlsFiles

ADDRESS = "127.0.0.1"
_DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Pair:
    """A certificate chain and its key, PEM."""

    certificate: bytes
    key: bytes


class Authority:
    """Signs for those who ask."""

    def __init__(self) -> None:
        self._ca = trustme.CA()
        self.pem: bytes = self._ca.cert_pem.bytes()

    def worker(self, name: str = ADDRESS) -> Pair:
        """For a worker that is reached under this name."""
        return _pair(self._ca.issue_cert(name))

    def expired(self, name: str = ADDRESS) -> Pair:
        """It was good until yesterday."""
        now = datetime.datetime.now(datetime.UTC)
        return _pair(self._ca.issue_cert(name, not_before=now - 20 * _DAY, not_after=now - _DAY))

    def router(self) -> Pair:
        """For a router, as the client of a worker that asks who it is."""
        return _pair(self._ca.issue_cert("router.test"))


def serving(pair: Pair, clients_of: Authority | None = None) -> grpc.ServerCredentials:
    """Of a server; with `clients_of` it asks for a client certificate of that authority."""
    return grpc.ssl_server_credentials(
        [(pair.key, pair.certificate)],
        root_certificates=None if clients_of is None else clients_of.pem,
        require_client_auth=clients_of is not None,
    )


@dataclass(frozen=True)
class Folder:
    """The router's own TLS files, as an operator rotates them."""

    path: Path

    def write(self, ca: bytes, pair: Pair | None = None) -> TlsFiles:
        """Replace what is there."""
        (self.path / "ca.pem").write_bytes(ca)
        if pair is None:
            return TlsFiles(str(self.path / "ca.pem"))
        (self.path / "router.pem").write_bytes(pair.certificate)
        (self.path / "router.key").write_bytes(pair.key)
        return TlsFiles(*(str(self.path / name) for name in ("ca.pem", "router.pem", "router.key")))


def _pair(issued: trustme.LeafCert) -> Pair:
    return Pair(b"".join(blob.bytes() for blob in issued.cert_chain_pems), issued.private_key_pem.bytes())

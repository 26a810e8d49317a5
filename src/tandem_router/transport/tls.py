"""What secures a connection to a worker: the worker's own PEMs, else the router's files, else the system's roots.

The files are read for every new connection, so a rotated certificate is used from the next one on, without a restart. A
connection that stands keeps what it was made with; once it broke it is not made again with what is out of date.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import grpc

from tandem_router.errors import Code, Reason
from tandem_router.model.failure import EngineFailure
from tandem_router.model.worker import Credentials

__all__ = ["SYSTEM", "ConnectionTls", "TlsFiles", "TlsMaterial", "tls_failure"]

_MAX_FILE_BYTES = 4 * 1024 * 1024
"""The bundles of public authorities that systems ship have about 0.25 MB."""


@dataclass(frozen=True, slots=True, repr=False)
class TlsMaterial:
    """PEMs of one connection; None = the system's roots, or no client certificate."""

    ca: bytes | None = None
    certificate: bytes | None = None
    key: bytes | None = None

    def credentials(self, where: str) -> grpc.ChannelCredentials:
        """For a channel; raises EngineFailure(WORKER_TLS_FAILED) for half of a pair, with which grpc ends the process.

        (grpc 1.85: a failed check in the certificate distributor, at the first use of the channel.)
        """
        if (self.certificate is None) != (self.key is None):
            missing = "key" if self.key is None else "certificate"
            raise tls_failure(f"{where}: the client certificate for mutual TLS has no {missing}")
        return grpc.ssl_channel_credentials(self.ca, self.key, self.certificate)

    def __repr__(self) -> str:
        return "TlsMaterial(<redacted>)"


SYSTEM = TlsMaterial()
"""The system's roots, no client certificate."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The router's own files, for workers without PEMs of their own; empty = none."""

    ca: str = ""
    certificate: str = ""
    key: str = ""

    def __post_init__(self) -> None:
        """Raises ValueError for half of a pair."""
        if bool(self.certificate) != bool(self.key):
            raise ValueError("worker_tls_certificate and worker_tls_key belong together; one is missing")

    def check(self) -> None:
        """Raise ValueError where a file cannot be read now."""
        try:
            self.read()
        except EngineFailure as failure:
            raise ValueError(failure.sentence) from None

    def read(self) -> TlsMaterial:
        """What the files hold now; raises EngineFailure(WORKER_TLS_FAILED)."""
        return TlsMaterial(
            _read("worker_tls_ca", self.ca),
            _read("worker_tls_certificate", self.certificate),
            _read("worker_tls_key", self.key),
        )


class ConnectionTls:
    """Where the TLS of one connection comes from, and what it was made with."""

    def __init__(self, files: TlsFiles, credentials: Credentials | None) -> None:
        """Raises EngineFailure(WORKER_TLS_FAILED) where a file that is needed cannot be read."""
        self._files = files
        self._own = credentials or Credentials()
        self.material = self._now()

    @property
    def is_outdated(self) -> bool:
        """Whether a connection made now would be made with something else."""
        try:
            return self._now() != self.material
        except EngineFailure:
            return False  # half-written files: what we have is all there is

    def _now(self) -> TlsMaterial:
        own = self._own
        has_pair = bool(own.tls_certificate_pem or own.tls_private_key_pem)
        if own.tls_ca_pem and has_pair:
            return TlsMaterial(own.tls_ca_pem, own.tls_certificate_pem, own.tls_private_key_pem)
        files = self._files.read()
        return TlsMaterial(
            own.tls_ca_pem or files.ca,
            own.tls_certificate_pem if has_pair else files.certificate,
            own.tls_private_key_pem if has_pair else files.key,
        )


def tls_failure(sentence: str) -> EngineFailure:
    """The failure of a handshake, or of what it needs; nothing was sent."""
    return EngineFailure(
        Reason.WORKER_TLS_FAILED, sentence, code=Code.UNAVAILABLE, was_sent=False, connection_lost=True
    )


def _read(setting: str, path: str) -> bytes | None:
    if not path:
        return None
    try:
        with Path(path).open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise tls_failure(f"{setting} {path} cannot be read: {error.strerror or error}") from None
    if len(data) > _MAX_FILE_BYTES:
        raise tls_failure(f"{setting} {path} exceeds {_MAX_FILE_BYTES} bytes")
    if b"-----BEGIN " not in data:
        raise tls_failure(f"{setting} {path} holds no PEM")
    return data

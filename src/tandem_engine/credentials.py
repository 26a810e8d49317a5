"""The engine's TLS: certificate and key of its own, and the authority that clients' certificates must come from."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

__all__ = ["TlsFiles", "TlsFilesError"]


class TlsFilesError(ValueError):
    """TLS files that nobody can be served with; the text names the file and never shows its contents."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files. With `client_ca` a client must show a certificate of that authority (mTLS). Read once, at start."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def check(self) -> None:
        """Raises TlsFilesError for what gRPC would only tell as a port that cannot be bound."""
        for path in filter(None, (self.certificate, self.key, self.client_ca)):
            try:
                path.read_bytes()
            except OSError as error:
                raise TlsFilesError(f"{path}: {error.strerror}") from None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            # An empty passphrase: without one OpenSSL would ask at the terminal.
            context.load_cert_chain(self.certificate, self.key, password=b"")
        except (ssl.SSLError, ValueError) as error:
            raise TlsFilesError(
                f"{self.certificate} and {self.key} are not a PEM certificate and its unencrypted key: {_why(error)}"
            ) from None
        if self.client_ca is not None:
            try:
                context.load_verify_locations(self.client_ca)
            except (ssl.SSLError, ValueError) as error:
                raise TlsFilesError(f"{self.client_ca} has no PEM certificate: {_why(error)}") from None

    def credentials(self) -> grpc.ServerCredentials:
        """Raises OSError for a file that cannot be read."""
        return grpc.ssl_server_credentials(
            [(self.key.read_bytes(), self.certificate.read_bytes())],
            root_certificates=None if self.client_ca is None else self.client_ca.read_bytes(),
            require_client_auth=self.client_ca is not None,
        )


def _why(error: Exception) -> str:
    reason = getattr(error, "reason", None) or str(error)
    return reason.replace("_", " ").lower()

"""`EngineDialer` over grpcio: connect, find out what the worker speaks, and knock at bootstrap ports."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from tandem_router.engines.contract import Dialect
from tandem_router.engines.registry import PROBE_ORDER, dialect_of
from tandem_router.errors import Reason
from tandem_router.model.detection import Asked, OnAsked
from tandem_router.model.failure import EngineFailure
from tandem_router.model.spec import WorkerSpec
from tandem_router.model.worker import Credentials
from tandem_router.transport.channels import call_metadata, open_channel, parse_address
from tandem_router.transport.connection import Connection
from tandem_router.transport.detection import detect, not_detected
from tandem_router.transport.failures import seconds
from tandem_router.transport.grpc_engine import GrpcEngine
from tandem_router.transport.tls import ConnectionTls, TlsFiles, tls_failure

__all__ = ["GrpcDialer"]

_ATTEMPTS = 3
"""Bridges the moment in which a restarting worker's socket is replaced; registration repeats on its own."""


class GrpcDialer:
    """Opens workers over gRPC."""

    def __init__(self, tls_files: TlsFiles | None = None) -> None:
        """Args:
        tls_files: for grpcs:// workers without PEMs of their own; read anew for every connection.
        """
        self._tls_files = tls_files or TlsFiles()

    async def dial(
        self,
        spec: WorkerSpec,
        credentials: Credentials | None,
        *,
        timeout_s: float,
        on_asked: OnAsked | None = None,
    ) -> GrpcEngine:
        """A connected client of what answers at spec.url.

        Raises EngineFailure: WORKER_UNREACHABLE, WORKER_TLS_FAILED, RUNTIME_NOT_DETECTED; WORKER_REFUSED when the
        worker wants other credentials; TandemError INVALID_WORKER_URL.
        """
        candidates: Sequence[Dialect] = PROBE_ORDER
        if spec.runtime_type is not None:
            stated = dialect_of(spec.runtime_type)
            if stated is None:
                raise not_detected(f"this router does not speak {spec.runtime_type}")
            candidates = (stated,)
        connection = self._open(spec, credentials)
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + timeout_s
        try:
            await connection.connect(min(spec.channel.connect_timeout_s or timeout_s, timeout_s), attempts=_ATTEMPTS)
            left_s = max(0.001, deadline_s - loop.time())
            dialect = await detect(connection, candidates, call_metadata(credentials), left_s, on_asked or _nobody)
        except BaseException:
            await connection.close()
            raise
        return GrpcEngine(connection, dialect, credentials, connect_timeout_s=spec.channel.connect_timeout_s)

    def _open(self, spec: WorkerSpec, credentials: Credentials | None) -> Connection:
        if not parse_address(spec.url).is_secure:
            if credentials is not None and credentials.has_tls:
                raise tls_failure(f"{spec.url}: TLS credentials are given for it; use grpcs://, grpc:// is plain text")
            return Connection(open_channel(spec.url, spec.channel), spec.url)
        tls = ConnectionTls(self._tls_files, credentials)
        return Connection(open_channel(spec.url, spec.channel, tls.material), spec.url, tls)

    async def probe_bootstrap(self, host: str, port: int, *, timeout_s: float) -> None:
        """Return if something accepts connections there; raises EngineFailure(WORKER_UNREACHABLE)."""
        try:
            async with asyncio.timeout(timeout_s):
                _, writer = await asyncio.open_connection(host.strip("[]"), port)
        except (OSError, TimeoutError) as error:
            why = str(error) or f"no answer within {seconds(timeout_s)}"
            raise EngineFailure(
                Reason.WORKER_UNREACHABLE, f"bootstrap endpoint {host}:{port}: {why}", was_sent=False
            ) from None
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def _nobody(asked: Asked) -> None:
    """Nobody wants to know."""

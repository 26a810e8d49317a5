"""`EngineDialer` over grpcio: connect, find out what the worker speaks, and knock at bootstrap ports."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

import grpc.aio
from google.protobuf.message import Message

from tandem_router.engines.contract import Dialect
from tandem_router.engines.registry import PROBE_ORDER, dialect_of
from tandem_router.errors import Code, Reason
from tandem_router.model.failure import EngineFailure
from tandem_router.model.spec import WorkerSpec
from tandem_router.model.worker import Credentials
from tandem_router.transport.channels import Metadata, call_metadata, open_channel
from tandem_router.transport.connection import Connection
from tandem_router.transport.failures import code_of, connection_failure, details_of
from tandem_router.transport.grpc_engine import GrpcEngine, serialize

__all__ = ["GrpcDialer"]

_ATTEMPTS = 3
"""Bridges the moment in which a restarting worker's socket is replaced; registration repeats on its own."""


class GrpcDialer:
    """Opens workers over gRPC."""

    async def dial(self, spec: WorkerSpec, credentials: Credentials | None, *, timeout_s: float) -> GrpcEngine:
        """A connected client of what answers at spec.url.

        Raises EngineFailure: WORKER_UNREACHABLE, RUNTIME_NOT_DETECTED; WORKER_REFUSED when the worker wants other
        credentials; TandemError INVALID_WORKER_URL.
        """
        candidates: Sequence[Dialect] = PROBE_ORDER
        if spec.runtime_type is not None:
            stated = dialect_of(spec.runtime_type)
            if stated is None:
                raise _not_detected(f"this router does not speak {spec.runtime_type}")
            candidates = (stated,)
        connection = Connection(open_channel(spec.url, spec.channel), spec.url)
        connect_timeout_s = min(spec.channel.connect_timeout_s or timeout_s, timeout_s)
        try:
            async with asyncio.timeout(timeout_s):
                await connection.connect(connect_timeout_s, attempts=_ATTEMPTS)
                dialect = await _detect(connection, candidates, call_metadata(credentials), timeout_s)
        except TimeoutError:
            await connection.close()
            raise EngineFailure(
                Reason.WORKER_UNREACHABLE,
                f"{spec.url}: connected, but nothing answered within {timeout_s:g} s",
                code=Code.DEADLINE_EXCEEDED,
            ) from None
        except BaseException:
            await connection.close()
            raise
        return GrpcEngine(connection, dialect, credentials, connect_timeout_s=spec.channel.connect_timeout_s)

    async def probe_bootstrap(self, host: str, port: int, *, timeout_s: float) -> None:
        """Return if something accepts connections there; raises EngineFailure(WORKER_UNREACHABLE)."""
        try:
            async with asyncio.timeout(timeout_s):
                _, writer = await asyncio.open_connection(host.strip("[]"), port)
        except (OSError, TimeoutError) as error:
            why = str(error) or f"no answer within {timeout_s:g} s"
            raise EngineFailure(
                Reason.WORKER_UNREACHABLE, f"bootstrap endpoint {host}:{port}: {why}", was_sent=False
            ) from None
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _detect(
    connection: Connection,
    candidates: Sequence[Dialect],
    metadata: Metadata,
    timeout_s: float,
) -> Dialect:
    """The first candidate whose GetServerInfo is answered: cheap for every engine, also during a long prefill."""
    answers: list[str] = []
    for dialect in candidates:
        rpc = dialect.methods.server_info
        stub: grpc.aio.UnaryUnaryMultiCallable[Message, bytes] = connection.channel.unary_unary(
            rpc.path, request_serializer=serialize
        )
        try:
            await stub(dialect.server_info_request(), timeout=timeout_s, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            lost = connection_failure(error, is_connected=connection.is_ready, where=connection.where)
            if lost is not None:
                raise lost from None
            code = code_of(error)
            if code in (Code.UNAUTHENTICATED, Code.PERMISSION_DENIED):
                raise EngineFailure(
                    Reason.WORKER_REFUSED, f"{connection.where}: {code.name}: {details_of(error)}", code=code
                ) from None
            if code is Code.DEADLINE_EXCEEDED:
                raise TimeoutError from None
            answers.append(f"{dialect.runtime_type}: {code.name}")
        else:
            return dialect
    raise _not_detected(f"{connection.where} answers no engine protocol ({', '.join(answers)})")


def _not_detected(sentence: str) -> EngineFailure:
    return EngineFailure(Reason.RUNTIME_NOT_DETECTED, sentence, code=Code.UNIMPLEMENTED)

"""Finding out which engine protocol answers: one cheap question per protocol, in a fixed order, each of them told."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import grpc.aio
from google.protobuf.message import Message

from tandem_router.engines.contract import Dialect
from tandem_router.errors import Code, Reason
from tandem_router.model.detection import Asked, OnAsked
from tandem_router.model.failure import EngineFailure
from tandem_router.transport.channels import Metadata
from tandem_router.transport.connection import Connection
from tandem_router.transport.failures import code_of, connection_failure, details_of, is_late, seconds
from tandem_router.transport.life import serialize
from tandem_router.transport.statusless import on_channel

__all__ = ["detect", "not_detected"]


async def detect(
    connection: Connection,
    candidates: Sequence[Dialect],
    metadata: Metadata,
    timeout_s: float,
    on_asked: OnAsked,
) -> Dialect:
    """The first candidate whose GetServerInfo is answered: cheap for every engine, also during a long prefill.

    timeout_s: for all questions together. on_asked: told of each once it is answered or given up.
    Raises EngineFailure: RUNTIME_NOT_DETECTED, WORKER_REFUSED, WORKER_UNREACHABLE (no answer), a broken connection's.
    """
    answers: list[Asked] = []
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + timeout_s
    for dialect in candidates:
        began_s = loop.time()
        answer = "cancelled"
        try:
            answer = await _ask(connection, dialect, metadata, max(0.001, deadline_s - began_s))
        except EngineFailure as failure:
            answer = failure.code.name
            raise
        finally:
            answers.append(Asked(dialect.runtime_type, answer, loop.time() - began_s))
            on_asked(answers[-1])
        if answer == Code.OK.name:
            return dialect
    told = ", ".join(f"{asked.runtime_type}: {asked.answer}" for asked in answers)
    raise not_detected(f"{connection.where} answers no engine protocol ({told})")


async def _ask(connection: Connection, dialect: Dialect, metadata: Metadata, timeout_s: float) -> str:
    """OK, or the status that says that it is not this protocol; raises EngineFailure where asking on is pointless."""
    stub: grpc.aio.UnaryUnaryMultiCallable[Message, bytes] = connection.channel.unary_unary(
        dialect.methods.server_info.path, request_serializer=serialize
    )
    deadline_s = asyncio.get_running_loop().time() + timeout_s
    try:
        with on_channel(connection):
            await stub(dialect.server_info_request(), timeout=timeout_s, metadata=metadata)
    except grpc.aio.AioRpcError as error:
        lost = connection_failure(error, is_connected=connection.is_ready, where=connection.where)
        if lost is not None:
            raise lost from None
        code = code_of(error)
        if code in (Code.UNAUTHENTICATED, Code.PERMISSION_DENIED):
            raise EngineFailure(
                Reason.WORKER_REFUSED,
                f"{connection.where}: {code.name}: {details_of(error)}; credentials.api_key is missing or another",
                code=code,
            ) from None
        if is_late(code, deadline_s):
            raise EngineFailure(
                Reason.WORKER_UNREACHABLE,
                f"{connection.where}: connected, but nothing answered within {seconds(timeout_s)}",
                code=code,
            ) from None
        return code.name
    return Code.OK.name


def not_detected(sentence: str) -> EngineFailure:
    """Nothing at the address speaks a protocol of ours."""
    return EngineFailure(Reason.RUNTIME_NOT_DETECTED, sentence, code=Code.UNIMPLEMENTED)

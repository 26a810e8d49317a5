"""A scripted worker, and a client of it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from scripted_server import ScriptedServer

from tandem_router.model.pairing import HandshakeKind, LegRole
from tandem_router.model.request import LegRequest, Sampling
from tandem_router.model.spec import WorkerSpec
from tandem_router.transport.dialer import GrpcDialer
from tandem_router.transport.grpc_engine import GrpcEngine

TIMEOUT_S = 5.0


@pytest.fixture
async def worker() -> AsyncIterator[ScriptedServer]:
    server = ScriptedServer()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def engine(worker: ScriptedServer) -> AsyncIterator[GrpcEngine]:
    client = await GrpcDialer().dial(WorkerSpec(worker.url), None, timeout_s=TIMEOUT_S)
    await client.describe(timeout_s=TIMEOUT_S)
    yield client
    await client.close()


@pytest.fixture
def leg() -> LegRequest:
    return LegRequest("leg-1", HandshakeKind.AGGREGATE, LegRole.DECODE, (5, 6, 7), Sampling())

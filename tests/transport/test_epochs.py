"""Another process at this address: told by a start time, by an age, by a name, or by the connection alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from scripted_server import ScriptedServer, until_lost

from tandem_router.engines.sglang import SglangDialect
from tandem_router.model.failure import EngineFailure
from tandem_router.model.spec import ChannelOptions
from tandem_router.model.worker import WorkerFacts
from tandem_router.transport.channels import open_channel
from tandem_router.transport.connection import Connection
from tandem_router.transport.grpc_engine import GrpcEngine

TIMEOUT_S = 5.0


class Telling(SglangDialect):
    """An engine that tells no more than its age, and not that where it is None."""

    def __init__(self, age_s: float | None) -> None:
        super().__init__()
        self.age_s = age_s

    def facts(self, model_info: Any, server_info: Any) -> WorkerFacts:
        return replace(super().facts(model_info, server_info), instance=None)

    def process_age_s(self, server_info: Any) -> float | None:
        return self.age_s


@pytest.fixture
async def told(worker: ScriptedServer) -> AsyncIterator[tuple[GrpcEngine, Telling]]:
    """A client that has described its worker, whose process was 100 s old."""
    dialect = Telling(100.0)
    connection = Connection(open_channel(worker.url, ChannelOptions()), worker.url)
    client = GrpcEngine(connection, dialect, None, connect_timeout_s=None)
    await client.describe(timeout_s=TIMEOUT_S)
    yield client, dialect
    await client.close()


async def reconnect(worker: ScriptedServer, client: GrpcEngine) -> None:
    worker.cut()
    await until_lost(client.connection)
    await client.probe(timeout_s=TIMEOUT_S)


async def test_age_that_goes_on_is_the_same_process(worker: ScriptedServer, told: tuple[GrpcEngine, Telling]) -> None:
    await reconnect(worker, told[0])


async def test_process_that_is_three_seconds_too_young_is_another_one(
    worker: ScriptedServer, told: tuple[GrpcEngine, Telling]
) -> None:
    client, dialect = told
    dialect.age_s = 97.0
    with pytest.raises(EngineFailure, match="another process") as caught:
        await reconnect(worker, client)
    assert (caught.value.connection_lost, caught.value.was_sent) == (True, False)


async def test_process_that_tells_nothing_any_more_is_another_one(
    worker: ScriptedServer, told: tuple[GrpcEngine, Telling]
) -> None:
    client, dialect = told
    dialect.age_s = None
    with pytest.raises(EngineFailure, match="another process"):
        await reconnect(worker, client)


async def test_engine_that_tells_nothing_lives_as_long_as_its_connection(
    worker: ScriptedServer, told: tuple[GrpcEngine, Telling]
) -> None:
    client, dialect = told
    dialect.age_s = None
    await client.describe(timeout_s=TIMEOUT_S)
    await client.probe(timeout_s=TIMEOUT_S)
    with pytest.raises(EngineFailure, match="another process"):
        await reconnect(worker, client)

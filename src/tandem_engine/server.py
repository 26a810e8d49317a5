"""One engine in this process: model, step loop, bootstrap port and gRPC server, begun and ended in order."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection
from smg_grpc_proto.generated import (
    sglang_scheduler_pb2,
    sglang_scheduler_pb2_grpc,
    vllm_engine_pb2,
    vllm_engine_pb2_grpc,
)

from tandem.engine.v1 import ledger_service_pb2, ledger_service_pb2_grpc
from tandem_engine.adapters import AdapterShelf
from tandem_engine.bootstrap import BootstrapServer
from tandem_engine.engine import Engine
from tandem_engine.faults import Faults
from tandem_engine.model import Model
from tandem_engine.options import EngineOptions, Mode, Protocol
from tandem_engine.services.api_key import ApiKeyGuard
from tandem_engine.services.health import HealthFollower
from tandem_engine.services.ledger import LedgerServicer
from tandem_engine.services.life import Life
from tandem_engine.services.sglang import SglangServicer
from tandem_engine.services.station import Station
from tandem_engine.services.vllm import VllmServicer
from tandem_engine.transfer import Geometry

__all__ = ["SERVER_OPTIONS", "ServedEngine", "serve"]

_log = logging.getLogger(__name__)

SERVER_OPTIONS = (
    # At grpcio's defaults a burst of opens is silently CANCELLED (119 of 2,000 on 1.85.1); raised, none.
    ("grpc.server.max_pending_requests", 100_000),
    ("grpc.server.max_pending_requests_hard_limit", 100_000),
    # Between a soft and a hard limit metadata fails at random: make them one.
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.absolute_max_metadata_size", 16 << 10),
    ("grpc.max_receive_message_length", 16 << 20),
    # Routers ping every few seconds, also while idle; the default minimum of 300 s would answer with GOAWAY.
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.so_reuseport", 0),
)


@dataclass(frozen=True, slots=True)
class ServedEngine:
    """A serving engine. `listen` is host:port as bound; `bootstrap_port` is 0 unless the engine is a prefill engine."""

    listen: str
    bootstrap_port: int
    station: Station
    server: grpc.aio.Server

    async def drain(self, grace_s: float) -> None:
        """Takes no new calls, lets running ones and untaken pages go on for up to `grace_s`, ends the rest."""
        self.station.life.begin_stopping()
        stopping = asyncio.create_task(self.server.stop(grace_s))
        try:
            async with asyncio.timeout(grace_s):
                await self.station.life.idle()
                if outcomes := self.station.bootstrap.offers.outcomes():
                    await asyncio.wait(outcomes)
        except TimeoutError:
            _log.warning("requests were still running after %g s", grace_s)
        # Health watches and event streams never end by themselves; a drain does not wait for them.
        await self.server.stop(None)
        await stopping

    async def crash(self) -> None:
        """As if the process had died: connections are reset, calls break off, nothing is finished."""
        self.station.bootstrap.break_off()
        await self.server.stop(None)
        self.station.engine.stop()


@asynccontextmanager
async def serve(
    options: EngineOptions, *, model: Model | None = None, faults: Faults | None = None
) -> AsyncIterator[ServedEngine]:
    """An engine that serves until the block ends; then everything it began is ended.

    `model` None loads the options' folder. Raises ModelFolderError for a folder that cannot be served, OSError or
    RuntimeError for a port that is taken, OSError for TLS files that cannot be read.
    """
    faults = faults or Faults(options.faults)
    if model is None:
        model = await asyncio.to_thread(Model.from_folder, options.model_folder)
    engine = Engine(model, options.settings, faults=faults)
    life = Life(engine, faults)
    scope_ready: asyncio.Future[asyncio.TaskGroup] = asyncio.get_running_loop().create_future()
    holder = asyncio.create_task(_hold(scope_ready))
    holder.add_done_callback(_report)
    scope = await scope_ready
    instance = str(uuid.uuid4())
    bootstrap = BootstrapServer(
        engine, Geometry(engine.settings.page_size, engine.page_bytes), faults,
        engine_id=lambda rank: station.engine_id_of(rank), timeout_s=options.bootstrap_timeout_s,
    )  # fmt: skip
    guards = [ApiKeyGuard(options.api_key)] if options.api_key is not None else []
    server = grpc.aio.server(interceptors=guards, options=SERVER_OPTIONS)
    try:
        port = await bootstrap.start(options.host, options.bootstrap_port) if options.mode is Mode.PREFILL else 0
        adapters = AdapterShelf(model.config, options.max_adapters)
        station = Station(options, engine, faults, life, bootstrap, port, scope, instance, adapters)
        service = _register(server, station)
        await HealthFollower(life, service, scope).attach(server)
        bound = _bind(server, options)
        steps = scope.create_task(_step_loop(engine, life))
        life.on_change(lambda: _bury(steps, bootstrap) if life.is_killed else None)
        await server.start()
        yield ServedEngine(f"{options.listen.rpartition(':')[0]}:{bound}", port, station, server)
    finally:
        await server.stop(None)
        engine.stop()
        await bootstrap.stop()
        holder.cancel()
        await asyncio.wait((holder,))


def _bind(server: grpc.aio.Server, options: EngineOptions) -> int:
    if options.tls is None:
        return server.add_insecure_port(options.listen)
    return server.add_secure_port(options.listen, options.tls.credentials())


def _register(server: grpc.aio.Server, station: Station) -> str:
    """Adds every service but health; returns the full name of the engine's own."""
    if station.options.protocol is Protocol.SGLANG:
        sglang_scheduler_pb2_grpc.add_SglangSchedulerServicer_to_server(SglangServicer(station), server)  # type: ignore[no-untyped-call]
        name: str = sglang_scheduler_pb2.DESCRIPTOR.services_by_name["SglangScheduler"].full_name
    else:
        vllm_engine_pb2_grpc.add_VllmEngineServicer_to_server(VllmServicer(station), server)  # type: ignore[no-untyped-call]
        name = vllm_engine_pb2.DESCRIPTOR.services_by_name["VllmEngine"].full_name
    ledger_service_pb2_grpc.add_LedgerServiceServicer_to_server(LedgerServicer(station), server)
    names = (
        name,
        ledger_service_pb2.DESCRIPTOR.services_by_name["LedgerService"].full_name,
        health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
        reflection.SERVICE_NAME,
    )
    reflection.enable_server_reflection(names, server)
    return name


async def _hold(ready: asyncio.Future[asyncio.TaskGroup]) -> None:
    """Owns the scope: cancelling this task cancels every task in it, and waits for them."""
    async with asyncio.TaskGroup() as scope:
        ready.set_result(scope)
        await asyncio.get_running_loop().create_future()


def _report(holder: asyncio.Task[None]) -> None:
    if not holder.cancelled() and holder.exception() is not None:
        _log.error("a background task failed", exc_info=holder.exception())


def _bury(steps: asyncio.Task[None], bootstrap: BootstrapServer) -> None:
    """What a killed engine leaves: no transfer, and no step, not even one that a fault holds back."""
    bootstrap.break_off()
    steps.cancel()


async def _step_loop(engine: Engine, life: Life) -> None:
    try:
        await engine.run()
    except Exception:
        # The process lives on, as real engines' front ends do: health and Generate tell.
        _log.exception("the step loop failed")
        life.step_loop_failed()

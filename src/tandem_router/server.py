"""The composition root: builds every room from settings, opens the listeners, and ends them in order.

The end comes in this order and within these times: `begin_drain` (at once: health says NOT_SERVING, calls that begin
something are refused with DRAINING), `drain` (at most shutdown_grace_s: what runs may end), `close` (at once: whoever
still waits is answered with DRAINING; then at most abort_timeout_s for engines to take their aborts). Probes are
answered to the last.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
from opentelemetry.sdk.trace import SpanProcessor

from tandem_router.clock import LoopClock, SystemIds, SystemRng
from tandem_router.core.ledger import LegLedger
from tandem_router.core.rooms import RoomAllocator
from tandem_router.core.watch_log import first_revision
from tandem_router.core.watch_pairs import PairTable
from tandem_router.model.worker import Worker
from tandem_router.offload.health_board import HealthBoard
from tandem_router.offload.health_thread import HealthThread
from tandem_router.offload.tokenizers import TokenizerPool
from tandem_router.policies.compatibility import incompatibility
from tandem_router.policies.plan import Planner
from tandem_router.policies.scorers import LeastInFlight
from tandem_router.runtime.adapter_control import AdapterControl
from tandem_router.runtime.control import Control
from tandem_router.runtime.operations import Operations
from tandem_router.runtime.relay import Relay, RelayStatistics
from tandem_router.runtime.relay_environment import RelayEnvironment
from tandem_router.runtime.watch import Watches
from tandem_router.services import listeners
from tandem_router.services.adapter import AdapterServicer
from tandem_router.services.cache import CacheServicer
from tandem_router.services.forwarding import ForwardedMetadata
from tandem_router.services.gate import Gate
from tandem_router.services.health import HealthServicer
from tandem_router.services.heartbeat import Heartbeat
from tandem_router.services.job import JobServicer
from tandem_router.services.pair import PairServicer
from tandem_router.services.profile import ProfileServicer
from tandem_router.services.router import RouterLimits, RouterServicer
from tandem_router.services.worker import WorkerServicer
from tandem_router.settings import ServerSettings, SettingsError, TelemetrySettings
from tandem_router.store.memory import InMemoryStore
from tandem_router.telemetry.readings import Fleet, Readings
from tandem_router.telemetry.telemetry import Telemetry
from tandem_router.transport.dialer import GrpcDialer
from tandem_router.transport.tls import TlsFiles

__all__ = ["Addresses", "RouterServer"]

LOG = logging.getLogger("tandem.server")

_STOP_GRACE_S = 0.5
"""For answers already written to leave; every request has ended by then."""
_HURRY_S = 0.5
"""For engines to take their aborts when nobody wants to wait; with the rest of a close well within a second."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the listeners are, host:port with the actual ports."""

    listen: str
    admin_listen: str
    health_listen: str
    metrics_listen: str


class RouterServer:
    """One router process. One event loop owns it: create it there, `start`, then `drain` or not, then `close`."""

    def __init__(self, settings: ServerSettings, *, span_processors: Sequence[SpanProcessor] = ()) -> None:
        """Raises SettingsError for settings that contradict each other.

        span_processors: receive the spans that have ended, beside the collector of the settings.
        """
        self._settings = settings
        clock, ids, rng = LoopClock(asyncio.get_running_loop()), SystemIds(), SystemRng()
        self._admin_credentials = _admin_credentials(settings)
        _check_heartbeat(settings)
        runtime = settings.runtime
        ledger = LegLedger()
        self._codecs = TokenizerPool()
        try:
            rooms = RoomAllocator(runtime.rooms, started_at_s=clock.monotonic_s(), started_at_wall_s=clock.wall_s())
        except ValueError as error:
            raise SettingsError(f"rooms.slot: {error}") from error
        telemetry = self._telemetry = _telemetry(settings.telemetry, ids.uuid(), span_processors)
        revision = first_revision(clock.wall_s())
        pairs = PairTable(revision=revision, capacity=runtime.watch.log_capacity)
        self._control = Control(
            clock=clock,
            ids=ids,
            rng=rng,
            store=InMemoryStore(),
            dialer=GrpcDialer(_worker_tls(settings)),
            codecs=self._codecs,
            ledger=ledger,
            observer=telemetry.observer,
            settings=runtime,
            revision=revision,
        )
        environment = RelayEnvironment(
            clock=clock,
            ids=ids,
            rng=rng,
            fleet=self._control.fleet,
            codecs=self._codecs,
            ledger=ledger,
            rooms=rooms,
            planner=Planner(runtime, LeastInFlight()),
            observer=telemetry.observer,
            settings=runtime,
            pairs=pairs,
            traces=telemetry.observer if telemetry.makes_spans else None,
        )
        self._relay = Relay(environment)
        self._fleet = Fleet(self._control.fleet.workers, ledger.in_flight)
        self._control.use(self._relay.end_legs)
        self._watches = Watches(self._control.history, pairs, runtime.watch)
        self._board = HealthBoard(stale_after_s=settings.health_stale_after_s)
        services = (*listeners.ROUTER_SERVICES, *listeners.ADMIN_SERVICES)
        self._heartbeat = Heartbeat(self._board, self._control.fleet.workers, _fits, services)
        self._beating: asyncio.Task[None] | None = None
        self._health_thread: HealthThread | None = None
        limits = listeners.TransportLimits(
            settings.max_receive_bytes, settings.max_metadata_bytes, settings.max_pending_requests
        )
        health = self._health = HealthServicer(self._board)
        gate = self._gate = Gate()
        router = RouterServicer(
            self._relay,
            self._control,
            self._codecs,
            clock,
            ids,
            _fits,
            RouterLimits(runtime.max_prompt_bytes, settings.slow_client_timeout_s, _forwarded(settings)),
        )
        operations = Operations(self._control.fleet, clock)
        self._public = listeners.router_server(router, health, ids, limits, gate, telemetry.observer.call_ended)
        self._admin = listeners.admin_server(
            WorkerServicer(self._control, ledger.in_flight, clock, self._watches),
            JobServicer(self._control, self._watches),
            PairServicer(self._relay, self._watches, runtime.max_prompt_bytes),
            AdapterServicer(AdapterControl(operations, self._control.pipeline.submit), clock),
            CacheServicer(operations, clock),
            ProfileServicer(operations, clock),
            health,
            ids,
            limits,
            gate,
            telemetry.observer.call_ended,
        )

    async def start(self) -> Addresses:
        """Open every listener; raises OSError when one cannot be had."""
        settings = self._settings
        await self._control.start()
        self._heartbeat.beat()
        self._beating = asyncio.create_task(self._heartbeat.run(settings.heartbeat_interval_s), name="heartbeat")
        metrics = self._telemetry.start(settings.metrics_listen, self._look, self._control.fleet.workers)
        # A bound port takes connections, so it is served at once; health comes last, for SERVING must be true.
        listen = _open(self._public, settings.listen, None)
        await self._public.start()
        admin = _open(self._admin, settings.admin_listen, self._admin_credentials)
        await self._admin.start()
        return Addresses(listen, admin, self._open_health(settings.health_listen), metrics)

    def statistics(self) -> RelayStatistics:
        """What is live now and how calls have ended."""
        return self._relay.statistics()

    def begin_drain(self) -> None:
        """Say NOT_SERVING and refuse what begins something; the rest goes on. Idempotent, returns at once."""
        self._heartbeat.drain()
        self._gate.drain()
        self._relay.begin_drain()

    async def drain(self) -> int:
        """Let running requests end within shutdown_grace_s, end the others and say how many those were."""
        self.begin_drain()
        grace_s = self._settings.shutdown_grace_s
        running = self._relay.statistics().live_requests
        within = "as long as they take" if grace_s == math.inf else f"at most {grace_s:g} s"
        LOG.info("draining: %d requests run on, for %s", running, within)
        ended = await self._relay.drain(None if grace_s == math.inf else grace_s)
        LOG.info("drained: %d requests were ended before their time", ended)
        return ended

    async def close(self, *, in_a_hurry: bool = False) -> None:
        """End whatever still runs and give everything back; idempotent once it has returned.

        Every caller is answered at once, watches too. Engines have abort_timeout_s to take their aborts, and half a
        second at most when in_a_hurry.
        """
        self.begin_drain()
        self._health.close()
        await self._relay.drain(0)
        await self._watches.close()
        self._gate.shut()
        await asyncio.gather(
            self._relay.close(_HURRY_S if in_a_hurry else None),
            self._public.stop(_STOP_GRACE_S),
            self._admin.stop(_STOP_GRACE_S),
        )
        await self._control.close()
        await self._codecs.close()
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.gather(self._beating, return_exceptions=True)
        if self._health_thread is not None:
            await asyncio.to_thread(self._health_thread.stop)
            self._health_thread = None
        await self._telemetry.close()

    def _look(self) -> Readings:
        now = self._relay.statistics()
        workers, in_flight = self._fleet.read()
        return Readings(
            live_requests=now.live_requests,
            queued_requests=now.queued_requests,
            live_attempts=now.live_attempts,
            live_rooms=now.live_rooms,
            workers=workers,
            in_flight=in_flight,
        )

    def _open_health(self, address: str) -> str:
        self._health_thread = HealthThread(self._board, address, listeners.add_health_reflection)
        self._health_thread.start()
        return f"{address.rpartition(':')[0]}:{self._health_thread.port}"


def _telemetry(settings: TelemetrySettings, instance_id: str, processors: Sequence[SpanProcessor]) -> Telemetry:
    if settings.sample_ratio > 1:
        raise SettingsError(f"telemetry.sample_ratio {settings.sample_ratio:g} must be 0 to 1")
    try:
        return Telemetry(
            instance_id,
            otlp_endpoint=settings.otlp_endpoint,
            sample_ratio=settings.sample_ratio,
            span_processors=processors,
        )
    except ImportError as error:
        raise SettingsError(f"telemetry.otlp_endpoint needs `pip install tandem-router[otlp]`: {error}") from error


def _check_heartbeat(settings: ServerSettings) -> None:
    """A beat that comes late must not look like a wedged loop."""
    if not 0 < settings.heartbeat_interval_s <= settings.health_stale_after_s / 2:
        raise SettingsError(
            f"heartbeat_interval_s {settings.heartbeat_interval_s:g} must be above 0 and at most half of "
            f"health_stale_after_s {settings.health_stale_after_s:g}"
        )


def _forwarded(settings: ServerSettings) -> ForwardedMetadata:
    try:
        return ForwardedMetadata(settings.forward_metadata)
    except ValueError as error:
        raise SettingsError(f"forward_metadata: {error}") from error


def _worker_tls(settings: ServerSettings) -> TlsFiles:
    try:
        files = TlsFiles(settings.worker_tls_ca, settings.worker_tls_certificate, settings.worker_tls_key)
        files.check()
    except ValueError as error:
        raise SettingsError(str(error)) from error
    return files


def _fits(prefill: Worker, decode: Worker) -> bool:
    return incompatibility(prefill, decode) is None


def _open(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None) -> str:
    try:
        port = (
            server.add_insecure_port(address) if credentials is None else server.add_secure_port(address, credentials)
        )
    except RuntimeError as error:
        raise OSError(f"cannot listen on {address}: {error}") from error
    return f"{address.rpartition(':')[0]}:{port}"


def _admin_credentials(settings: ServerSettings) -> grpc.ServerCredentials | None:
    """Mutual TLS where its files are named; a listener that others can reach must have it."""
    files = (settings.admin_tls_key, settings.admin_tls_certificate, settings.admin_client_ca)
    if not any(files):
        if not _is_loopback(settings.admin_listen):
            raise SettingsError(
                f"admin_listen {settings.admin_listen} can be reached from elsewhere and needs credentials: "
                "set admin_tls_certificate, admin_tls_key and admin_client_ca"
            )
        return None
    if not all(files):
        raise SettingsError("admin_tls_certificate, admin_tls_key and admin_client_ca belong together; one is missing")
    try:
        key, certificate, authority = (Path(name).read_bytes() for name in files)
    except OSError as error:
        raise SettingsError(f"cannot read the admin listener's credentials: {error}") from error
    return grpc.ssl_server_credentials([(key, certificate)], authority, require_client_auth=True)


def _is_loopback(address: str) -> bool:
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

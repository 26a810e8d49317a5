"""The two listeners of the loop: which services each offers, and the grpcio options that both need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import grpc
from grpc_channelz.v1 import channelz, channelz_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tandem.v1 import (
    adapter_service_pb2,
    adapter_service_pb2_grpc,
    cache_service_pb2,
    cache_service_pb2_grpc,
    job_service_pb2,
    job_service_pb2_grpc,
    pair_service_pb2,
    pair_service_pb2_grpc,
    profile_service_pb2,
    profile_service_pb2_grpc,
    router_service_pb2,
    router_service_pb2_grpc,
    worker_service_pb2,
    worker_service_pb2_grpc,
)
from tandem_router.ports import Ids
from tandem_router.services.adapter import AdapterServicer
from tandem_router.services.cache import CacheServicer
from tandem_router.services.gate import Gate
from tandem_router.services.guard import CallEnded, Guard
from tandem_router.services.health import HealthServicer
from tandem_router.services.job import JobServicer
from tandem_router.services.pair import PairServicer
from tandem_router.services.profile import ProfileServicer
from tandem_router.services.reflection import add_reflection, add_sync_reflection
from tandem_router.services.router import RouterServicer
from tandem_router.services.worker import WorkerServicer

__all__ = [
    "ADMIN_SERVICES",
    "ROUTER_SERVICES",
    "TransportLimits",
    "add_health_reflection",
    "admin_server",
    "router_server",
]

_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
_CHANNELZ = channelz_pb2.DESCRIPTOR.services_by_name["Channelz"].full_name

ROUTER_SERVICES = (router_service_pb2.DESCRIPTOR.services_by_name["RouterService"].full_name,)
ADMIN_SERVICES = (
    worker_service_pb2.DESCRIPTOR.services_by_name["WorkerService"].full_name,
    job_service_pb2.DESCRIPTOR.services_by_name["JobService"].full_name,
    pair_service_pb2.DESCRIPTOR.services_by_name["PairService"].full_name,
    adapter_service_pb2.DESCRIPTOR.services_by_name["AdapterService"].full_name,
    cache_service_pb2.DESCRIPTOR.services_by_name["CacheService"].full_name,
    profile_service_pb2.DESCRIPTOR.services_by_name["ProfileService"].full_name,
)


@dataclass(frozen=True, slots=True)
class TransportLimits:
    """What grpcio is told of every listener."""

    max_receive_bytes: int = 16 * 1024 * 1024
    max_metadata_bytes: int = 16 * 1024
    max_pending_requests: int = 20_000


def router_server(
    router: RouterServicer,
    health: HealthServicer,
    ids: Ids,
    limits: TransportLimits,
    gate: Gate | None = None,
    ended: CallEnded | None = None,
) -> grpc.aio.Server:
    """The public listener's server, without a port."""
    server = _server(ids, limits, gate, ended)
    router_service_pb2_grpc.add_RouterServiceServicer_to_server(router, server)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    add_reflection(server, (*ROUTER_SERVICES, _HEALTH))
    return server


def admin_server(
    worker: WorkerServicer,
    job: JobServicer,
    pair: PairServicer,
    adapter: AdapterServicer,
    cache: CacheServicer,
    profile: ProfileServicer,
    health: HealthServicer,
    ids: Ids,
    limits: TransportLimits,
    gate: Gate | None = None,
    ended: CallEnded | None = None,
) -> grpc.aio.Server:
    """The admin listener's server, without a port. channelz is process-global: it shows the public listener too."""
    server = _server(ids, limits, gate, ended)
    worker_service_pb2_grpc.add_WorkerServiceServicer_to_server(worker, server)
    job_service_pb2_grpc.add_JobServiceServicer_to_server(job, server)
    pair_service_pb2_grpc.add_PairServiceServicer_to_server(pair, server)
    adapter_service_pb2_grpc.add_AdapterServiceServicer_to_server(adapter, server)
    cache_service_pb2_grpc.add_CacheServiceServicer_to_server(cache, server)
    profile_service_pb2_grpc.add_ProfileServiceServicer_to_server(profile, server)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    channelz.add_channelz_servicer(server)
    add_reflection(server, (*ADMIN_SERVICES, _HEALTH, _CHANNELZ))
    return server


def add_health_reflection(server: grpc.Server) -> None:
    """Reflection of the health listener, which offers health alone."""
    add_sync_reflection(server, (_HEALTH,))


def _server(ids: Ids, limits: TransportLimits, gate: Gate | None, ended: CallEnded | None) -> grpc.aio.Server:
    return grpc.aio.server(interceptors=[Guard(ids, gate, ended)], options=_options(limits))


def _options(limits: TransportLimits) -> Sequence[tuple[str, int]]:
    return (
        # Without both, bursts are CANCELLED in silence: 27-36 % of 5,000 opens (field-survey 4.4).
        ("grpc.server.max_pending_requests", limits.max_pending_requests),
        ("grpc.server.max_pending_requests_hard_limit", limits.max_pending_requests),
        # Between soft and hard limit grpcio refuses at random.
        ("grpc.max_metadata_size", limits.max_metadata_bytes),
        ("grpc.absolute_max_metadata_size", limits.max_metadata_bytes),
        ("grpc.max_receive_message_length", limits.max_receive_bytes),
        # A second server on a taken port must fail, not share it.
        ("grpc.so_reuseport", 0),
        # A vanished client is noticed within 40 s, and clients may ping every 10 s, streams or not.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    )

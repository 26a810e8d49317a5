"""A scripted engine on a real gRPC port, in this loop: started, told what to do, watched and stopped."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from tandem_router.model.spec import RuntimeType
from tandem_router.testing.grpc_engines.answering import Answering
from tandem_router.testing.grpc_engines.archives import archive_bytes
from tandem_router.testing.grpc_engines.gate import Gate
from tandem_router.testing.grpc_engines.health import ScriptedHealth
from tandem_router.testing.grpc_engines.kv_feed import KvFeed
from tandem_router.testing.grpc_engines.meeting import Meeting
from tandem_router.testing.grpc_engines.mlx import ScriptedMlx
from tandem_router.testing.grpc_engines.recorded import Seen
from tandem_router.testing.grpc_engines.script import Archive, GrpcScript, Listening
from tandem_router.testing.grpc_engines.sglang import ScriptedSglang
from tandem_router.testing.grpc_engines.station import Station
from tandem_router.testing.grpc_engines.tokenspeed import ScriptedTokenspeed
from tandem_router.testing.grpc_engines.trtllm import ScriptedTrtllm
from tandem_router.testing.grpc_engines.vllm import ScriptedVllm

__all__ = ["ScriptedGrpcEngine"]


class _Servicer(Protocol):
    service: str
    answering: Answering
    feed: KvFeed | None

    def attach(self, server: grpc.aio.Server) -> None: ...


_SERVICERS: Mapping[RuntimeType, Any] = {
    RuntimeType.SGLANG: ScriptedSglang,
    RuntimeType.VLLM: ScriptedVllm,
    RuntimeType.TRTLLM: ScriptedTrtllm,
    RuntimeType.TOKENSPEED: ScriptedTokenspeed,
    RuntimeType.MLX: ScriptedMlx,
}


class ScriptedGrpcEngine:
    """One engine at one address, through any number of process lives. Use it as an async context manager."""

    def __init__(self, script: GrpcScript, meeting: Meeting | None = None) -> None:
        """Args:
        meeting: shared with the engines that it is paired with; None = it is alone.
        """
        self._station = Station(script, meeting or Meeting(), adapters=list(script.adapters))
        self._servicer: _Servicer = _SERVICERS[script.runtime](self._station)
        self._gate = Gate(self._servicer.service, self._station.current)
        self._server: grpc.aio.Server | None = None
        self._listener: socket.socket | None = None

    @property
    def script(self) -> GrpcScript:
        """In force; `turn` replaces it."""
        return self._station.script

    def turn(self, **changes: Any) -> None:
        """Change fields of the script for what comes from now on; `listening`, `tls` and `host` at the next start."""
        self._station.script = replace(self._station.script, **changes)

    @property
    def service(self) -> str:
        """Full name of its gRPC service."""
        return self._servicer.service

    @property
    def address(self) -> str:
        """host:port."""
        host = self.script.host
        return f"[{host}]:{self._station.port}" if ":" in host else f"{host}:{self._station.port}"

    @property
    def url(self) -> str:
        """As a worker's spec has it."""
        return f"grpc{'' if self.script.tls is None else 's'}://{self.address}"

    @property
    def engine_id(self) -> str:
        """What it calls itself in this life."""
        return self._station.engine_id

    @property
    def deaths(self) -> list[str]:
        """Requests that killed or hung it, by cause; a router leaves this empty."""
        return self._station.deaths

    @property
    def feed(self) -> KvFeed:
        """Its KV events; raises LookupError where the protocol has none."""
        if self._servicer.feed is None:
            raise LookupError(f"{self.script.runtime} publishes no KV events")
        return self._servicer.feed

    @property
    def running(self) -> int:
        """Requests that it is working on."""
        return self._servicer.answering.running

    def seen(self, rpc: str) -> list[Seen]:
        """Every call of that name, oldest first, through all lives."""
        return [seen for seen in self._gate.seen if seen.rpc == rpc]

    @property
    def generated(self) -> list[Any]:
        """The Generate requests, oldest first."""
        return [seen.message for seen in self.seen("Generate")]

    @property
    def aborted(self) -> list[str]:
        """Ids that Abort named, oldest first."""
        found: list[str] = []
        for seen in self.seen("Abort"):
            many = getattr(seen.message, "request_ids", None)
            found += [seen.message.request_id] if many is None else list(many)
        return found

    @property
    def open_calls(self) -> int:
        """Calls of its own service that have no status yet."""
        return sum(seen.is_open for seen in self._gate.seen)

    async def start(self) -> None:
        """Begin a life at the same port as before, or at a free one."""
        station, script = self._station, self.script
        station.life += 1
        station.began_s = asyncio.get_running_loop().time()
        station.deaths.clear()
        if script.archive is not Archive.NONE:
            archive_bytes(script.archive)  # a bomb takes a second to build, which must not look like a slow engine
        if script.listening is not Listening.SERVING:
            self._listener = _bind(script.host, station.port)
            station.port = self._listener.getsockname()[1]
            if script.listening is Listening.SILENT:
                self._listener.listen()
            return
        # SO_REUSEPORT would let two lives, or two tests, share the port.
        self._server = grpc.aio.server(interceptors=[self._gate], options=[("grpc.so_reuseport", 0)])
        self._servicer.attach(self._server)
        health_pb2_grpc.add_HealthServicer_to_server(ScriptedHealth(station, self.service), self._server)
        names = (self.service, "grpc.health.v1.Health", reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        station.port = self._bind_server(self._server)
        await self._server.start()

    async def stop(self, grace_s: float | None = None) -> None:
        """End the life: calls are cut, nothing listens; idempotent."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop(grace_s)
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()

    async def restart(self, **changes: Any) -> None:
        """Another process at the same address, with another start time, and another engine id unless one is stated."""
        await self.stop()
        self.turn(**changes)
        await self.start()

    async def __aenter__(self) -> ScriptedGrpcEngine:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def _bind_server(self, server: grpc.aio.Server) -> int:
        tls = self.script.tls
        if tls is None:
            return int(server.add_insecure_port(self.address))
        credentials = grpc.ssl_server_credentials(
            [(tls.key_pem, tls.certificate_pem)], tls.client_ca_pem, require_client_auth=tls.client_ca_pem is not None
        )
        return int(server.add_secure_port(self.address, credentials))


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.bind((host, port))
    return bound

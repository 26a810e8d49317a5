"""The whole server in this process, on free ports: listeners, reflection, health, drain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from tandem.v1 import generate_pb2, router_service_pb2_grpc, worker_service_pb2, worker_service_pb2_grpc
from tandem_router.errors import Reason
from tandem_router.server import Addresses, RouterServer
from tandem_router.settings import ServerSettings, SettingsError
from tandem_router.wire.status import decode

FREE = ServerSettings(
    listen="127.0.0.1:0", admin_listen="127.0.0.1:0", health_listen="127.0.0.1:0", metrics_listen="127.0.0.1:0"
)
VERSIONS = ("grpc.reflection.v1", "grpc.reflection.v1alpha")


@pytest.fixture
async def server() -> AsyncIterator[RouterServer]:
    server = RouterServer(FREE)
    yield server
    await server.close()


@pytest.fixture
async def addresses(server: RouterServer) -> Addresses:
    return await server.start()


async def reflect(address: str, version: str, request: Any) -> Any:
    async with grpc.aio.insecure_channel(address) as channel:
        call: Any = channel.stream_stream(
            f"/{version}.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )(iter([request]))
        return await call.read()


async def services(address: str, version: str) -> set[str]:
    answer = await reflect(address, version, reflection_pb2.ServerReflectionRequest(list_services=""))
    return {service.name for service in answer.list_services_response.service}


@pytest.mark.parametrize("version", VERSIONS)
async def test_public_listener_reflects_its_own_services_only(addresses: Addresses, version: str) -> None:
    assert await services(addresses.listen, version) == {
        "tandem.v1.RouterService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    }


@pytest.mark.parametrize("version", VERSIONS)
async def test_admin_listener_reflects_everything_else(addresses: Addresses, version: str) -> None:
    found = await services(addresses.admin_listen, version)
    assert {
        "tandem.v1.WorkerService",
        "tandem.v1.JobService",
        "tandem.v1.PairService",
        "tandem.v1.AdapterService",
        "tandem.v1.CacheService",
        "tandem.v1.ProfileService",
        "grpc.channelz.v1.Channelz",
    } <= (found - {"tandem.v1.RouterService"})


@pytest.mark.parametrize("version", VERSIONS)
async def test_health_listener_reflects_health_alone(addresses: Addresses, version: str) -> None:
    assert await services(addresses.health_listen, version) == {
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    }


async def test_open_reflection_calls_leave_checks_a_thread(addresses: Addresses) -> None:
    async with grpc.aio.insecure_channel(addresses.health_listen) as channel:
        reflect_on: Any = channel.stream_stream(f"/{VERSIONS[0]}.ServerReflection/ServerReflectionInfo")
        calls = [reflect_on() for _ in range(20)]
        # Which of them come first is not for us to say.
        ends = asyncio.as_completed([asyncio.ensure_future(call.code()) for call in calls])
        refused = [await next(ends) for _ in range(16)]
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())  # type: ignore[misc]
        for call in calls:
            call.cancel()
        for end in ends:
            await end
    assert (set(refused), answer.status) == (
        {grpc.StatusCode.RESOURCE_EXHAUSTED},
        health_pb2.HealthCheckResponse.SERVING,
    )


@pytest.mark.parametrize("listener", ["listen", "health_listen"])
@pytest.mark.parametrize("version", VERSIONS)
async def test_reflection_describes_itself(addresses: Addresses, version: str, listener: str) -> None:
    request = reflection_pb2.ServerReflectionRequest(file_containing_symbol=f"{version}.ServerReflection")
    answer = await reflect(getattr(addresses, listener), version, request)
    file = descriptor_pb2.FileDescriptorProto.FromString(answer.file_descriptor_response.file_descriptor_proto[0])
    types = {method.input_type for service in file.service for method in service.method}
    assert (file.package, types) == (version, {f".{version}.ServerReflectionRequest"})


@pytest.mark.parametrize("name", ["", "liveness", "readiness", "tandem.v1.RouterService", "tandem.v1.WorkerService"])
@pytest.mark.parametrize("listener", ["listen", "admin_listen", "health_listen"])
async def test_every_listener_says_serving_of_every_name(addresses: Addresses, listener: str, name: str) -> None:
    async with grpc.aio.insecure_channel(getattr(addresses, listener)) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name))  # type: ignore[misc]
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("", health_pb2.HealthCheckResponse.NOT_SERVING),
        ("readiness", health_pb2.HealthCheckResponse.NOT_SERVING),
        ("tandem.v1.RouterService", health_pb2.HealthCheckResponse.NOT_SERVING),
        ("liveness", health_pb2.HealthCheckResponse.SERVING),
    ],
)
async def test_draining_server_is_alive_and_not_serving(
    server: RouterServer, addresses: Addresses, name: str, status: int
) -> None:
    server.begin_drain()
    async with grpc.aio.insecure_channel(addresses.health_listen) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name))  # type: ignore[misc]
    assert answer.status == status


async def error_of(address: str, request: generate_pb2.GenerateRequest) -> Reason | None:
    async with grpc.aio.insecure_channel(address) as channel:
        call = router_service_pb2_grpc.RouterServiceStub(channel).Generate(request)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    error = decode([(key, value) for key, value in caught.value.trailing_metadata() or ()])
    return error.reason if error is not None else None


async def test_draining_server_refuses_new_requests(server: RouterServer, addresses: Addresses) -> None:
    server.begin_drain()
    assert await error_of(addresses.listen, generate_pb2.GenerateRequest(text="x", model="m")) is Reason.DRAINING


async def test_draining_server_refuses_mutations_and_goes_on_to_show(
    server: RouterServer, addresses: Addresses
) -> None:
    server.begin_drain()
    async with grpc.aio.insecure_channel(addresses.admin_listen) as channel:
        stub = worker_service_pb2_grpc.WorkerServiceStub(channel)
        listed = await stub.ListWorkers(worker_service_pb2.ListWorkersRequest())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.CreateWorker(worker_service_pb2.CreateWorkerRequest())
    error = decode([(key, value) for key, value in caught.value.trailing_metadata() or ()])
    assert error is not None
    assert (len(listed.workers), error.reason, error.retry_after_s) == (0, Reason.DRAINING, 1.0)


async def test_close_ends_a_health_watch_with_unavailable(server: RouterServer, addresses: Addresses) -> None:
    async with grpc.aio.insecure_channel(addresses.listen) as channel:
        watch: Any = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        await watch.read()
        await server.close()
        assert await watch.code() is grpc.StatusCode.UNAVAILABLE


async def test_idle_server_drains_at_once(server: RouterServer, addresses: Addresses) -> None:
    assert await server.drain() == 0


async def test_unknown_model_is_refused_end_to_end(addresses: Addresses) -> None:
    request = generate_pb2.GenerateRequest(text="x", model="m")
    assert await error_of(addresses.listen, request) is Reason.MODEL_NOT_FOUND


async def test_router_service_is_not_on_the_admin_listener(addresses: Addresses) -> None:
    assert await error_of(addresses.admin_listen, generate_pb2.GenerateRequest(text="x", model="m")) is None


async def test_fresh_server_lists_no_worker(addresses: Addresses) -> None:
    async with grpc.aio.insecure_channel(addresses.admin_listen) as channel:
        stub = worker_service_pb2_grpc.WorkerServiceStub(channel)
        assert not (await stub.ListWorkers(worker_service_pb2.ListWorkersRequest())).workers


async def test_channelz_is_on_the_admin_listener(addresses: Addresses) -> None:
    async with grpc.aio.insecure_channel(addresses.admin_listen) as channel:
        answer = await channelz_pb2_grpc.ChannelzStub(channel).GetServers(  # type: ignore[no-untyped-call]
            channelz_pb2.GetServersRequest(start_server_id=0)
        )
    # Of the whole process; tests/e2e/test_health.py counts them in one of its own.
    assert len([server for server in answer.server if server.listen_socket]) >= 3


async def test_close_is_idempotent(server: RouterServer, addresses: Addresses) -> None:
    await server.close()
    await server.close()


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "example.org:1", ":1"])
async def test_admin_listener_that_others_can_reach_needs_credentials(address: str) -> None:
    with pytest.raises(SettingsError, match="needs credentials"):
        RouterServer(replace(FREE, admin_listen=address))


@pytest.mark.parametrize(("interval_s", "stale_after_s"), [(0.0, 2.0), (1.1, 2.0), (0.25, 0.0)])
async def test_heartbeat_that_is_too_slow_for_its_limit_is_refused(interval_s: float, stale_after_s: float) -> None:
    settings = replace(FREE, heartbeat_interval_s=interval_s, health_stale_after_s=stale_after_s)
    with pytest.raises(SettingsError, match="heartbeat_interval_s"):
        RouterServer(settings)


async def test_half_of_the_credentials_is_refused() -> None:
    with pytest.raises(SettingsError, match="belong together"):
        RouterServer(replace(FREE, admin_tls_key="x"))


async def test_room_slot_outside_its_range_is_refused() -> None:
    runtime = replace(FREE.runtime, rooms=replace(FREE.runtime.rooms, slot=64))
    with pytest.raises(SettingsError, match=r"rooms\.slot"):
        RouterServer(replace(FREE, runtime=runtime))


async def test_taken_port_is_an_os_error(addresses: Addresses) -> None:
    second = RouterServer(replace(FREE, listen=addresses.listen))
    with pytest.raises(OSError, match="cannot listen on"):
        await second.start()
    await second.close()

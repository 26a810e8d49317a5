"""Registering over real gRPC against the whole server."""

from __future__ import annotations

import asyncio

import grpc
from tests.cli.test_server import FREE

from tandem.v1 import worker_service_pb2, worker_service_pb2_grpc
from tandem_router.errors import Reason
from tandem_router.server import RouterServer
from tandem_router.wire.status import decode

CREATES = 200


async def test_of_200_concurrent_creates_of_one_url_one_succeeds_and_199_learn_its_id() -> None:
    server = RouterServer(FREE)
    try:
        addresses = await server.start()
        async with grpc.aio.insecure_channel(addresses.admin_listen) as channel:
            stub = worker_service_pb2_grpc.WorkerServiceStub(channel)
            spellings = ("grpc://localhost:9", "GRPC://LocalHost:09", "grpc://LOCALHOST.:9/")

            async def create(number: int) -> tuple[str, str]:
                request = worker_service_pb2.CreateWorkerRequest()
                request.spec.url = spellings[number % 3]
                try:
                    return "OK", (await stub.CreateWorker(request)).worker.id
                except grpc.aio.AioRpcError as error:
                    trailers = [(key, value) for key, value in error.trailing_metadata() or ()]
                    told = decode(trailers)
                    assert error.code() is grpc.StatusCode.ALREADY_EXISTS  # noqa: PT017 - both ways are wanted
                    return told.reason if told else "", told.metadata["worker_id"] if told else ""

            answers = await asyncio.gather(*(create(number) for number in range(CREATES)))
        assert [kind for kind, _ in answers].count("OK") == 1
        assert {kind for kind, _ in answers} <= {"OK", Reason.WORKER_CREATE_IN_PROGRESS, Reason.WORKER_ALREADY_EXISTS}
        assert len({worker_id for _, worker_id in answers}) == 1
    finally:
        await server.close()

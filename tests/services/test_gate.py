"""Who goes in while the server shuts down, and how those inside come out."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import grpc
import pytest

from tandem.v1 import job_service_pb2, pair_service_pb2, router_service_pb2, worker_service_pb2
from tandem_router.errors import Reason, TandemError
from tandem_router.services.gate import Gate

GOES_ON = {
    "Abort", "ResumeGenerate", "ListModels", "GetModel", "Tokenize", "Detokenize",
    "GetWorker", "ListWorkers", "WatchWorkers", "GetJob", "ListJobs", "WatchJob",
    "PlanPair", "ReleasePair", "ListPairs", "WatchPairs",
}  # fmt: skip
REFUSED = {
    "Generate", "GenerateSession", "Embed",
    "CreateWorker", "ReplaceWorker", "UpdateWorker", "DeleteWorker", "DrainWorker", "UndrainWorker", "CancelJob",
    "ReservePair",
}  # fmt: skip


def methods() -> Iterator[tuple[str, str]]:
    """("Rpc", "/tandem.v1.Service/Rpc") of every rpc there is."""
    for module in (router_service_pb2, worker_service_pb2, job_service_pb2, pair_service_pb2):
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                yield method.name, f"/{service.full_name}/{method.name}"


async def goes_in(gate: Gate, method: str) -> bool:
    try:
        with gate.inside(method):
            return True
    except TandemError:
        return False


def test_every_rpc_is_in_one_of_the_two_lists() -> None:
    assert {name for name, _ in methods()} == GOES_ON | REFUSED


async def test_open_gate_lets_every_rpc_in() -> None:
    gate = Gate()
    assert [method for _, method in methods() if not await goes_in(gate, method)] == []


async def test_draining_gate_refuses_exactly_what_begins_something() -> None:
    gate = Gate()
    gate.drain()
    assert {name for name, method in methods() if not await goes_in(gate, method)} == REFUSED


async def test_shut_gate_refuses_every_rpc() -> None:
    gate = Gate()
    gate.shut()
    assert [method for _, method in methods() if await goes_in(gate, method)] == []


async def waiting(gate: Gate) -> asyncio.Task[None]:
    async def handle() -> None:
        with gate.inside("/tandem.v1.WorkerService/WatchWorkers"):
            await asyncio.get_running_loop().create_future()

    task = asyncio.create_task(handle())
    await asyncio.sleep(0)
    return task


async def test_shutting_answers_who_is_inside_with_draining() -> None:
    gate = Gate()
    task = await waiting(gate)
    gate.shut()
    with pytest.raises(TandemError) as caught:
        await task
    assert (caught.value.reason, task.cancelling(), repr(gate)) == (Reason.DRAINING, 0, "<Gate shut, 0 calls inside>")


async def test_client_s_own_cancel_stays_a_cancel() -> None:
    gate = Gate()
    task = await waiting(gate)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_client_s_cancel_on_top_of_the_gate_s_stays_a_cancel() -> None:
    gate = Gate()
    task = await waiting(gate)
    gate.shut()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_draining_is_unavailable() -> None:
    assert grpc.StatusCode.UNAVAILABLE.value[0] == TandemError(Reason.DRAINING, "x").code

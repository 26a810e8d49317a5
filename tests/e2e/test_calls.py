"""Calls at their edges over real processes: bursts, cancels, stalled readers, deadlines, and what they leave behind."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace

import grpc
import pytest
from tests.e2e.processes import EngineProcess

from tandem.v1 import (
    generate_pb2,
    generate_result_pb2,
    message_pb2,
    router_service_pb2,
    router_service_pb2_grpc,
    sampling_pb2,
    worker_pb2,
    worker_service_pb2,
    worker_service_pb2_grpc,
    worker_spec_pb2,
)
from tandem_router.errors import Reason, TandemError
from tandem_router.model.settings import RuntimeSettings
from tandem_router.runtime.relay import RelayStatistics
from tandem_router.server import RouterServer
from tandem_router.settings import ServerSettings
from tandem_router.wire.status import decode

pytestmark = pytest.mark.e2e

PROMPT = list(range(5, 45))
CANCELS = 200
BURST = 2_000
STEP = "--fault=step_latency=5ms"
Stream = grpc.aio.UnaryStreamCall[generate_pb2.GenerateRequest, generate_result_pb2.GenerateResponse]
TYPES = {
    "prefill": worker_spec_pb2.WORKER_TYPE_PREFILL,
    "decode": worker_spec_pb2.WORKER_TYPE_DECODE,
    "aggregated": worker_spec_pb2.WORKER_TYPE_REGULAR,
}
BRIEF_GRACE = RuntimeSettings(transfer_grace_s=2.0)
"""A rendezvous' decode whose prefill was cancelled waits for pages until its grace is over (DESIGN 4.2), 30 s unless
set: abort must not meet a transfer, and the router cannot know that none will come."""
STALLS = (("grpc.http2.lookahead_bytes", 1), ("grpc.http2.bdp_probe", 0), ("grpc.use_local_subchannel_pool", 1))
"""A client with these grants no room in advance, so one that does not read stops its writer after a message or two."""


@pytest.fixture(scope="module", params=["sglang", "vllm"])
def pair(request: pytest.FixtureRequest) -> Iterator[list[EngineProcess]]:
    with contextlib.ExitStack() as stack:
        engines = []
        for mode in ("prefill", "decode"):
            engines.append(EngineProcess(request.param, mode, STEP, "--kv-lease", "3s"))
            stack.callback(engines[-1].stop)
        yield engines


@pytest.fixture(scope="module")
def alone() -> Iterator[list[EngineProcess]]:
    engine = EngineProcess("vllm", "aggregated", "--fault=step_latency=50ms")
    yield [engine]
    engine.stop()


@dataclass
class Front:
    """A router in this process, in front of engines in theirs, so that its books can be read."""

    server: RouterServer
    stub: router_service_pb2_grpc.RouterServiceStub
    stalling: router_service_pb2_grpc.RouterServiceStub

    def books(self) -> RelayStatistics:
        """What is live; the totals, which only grow, are left out."""
        now = self.server.statistics()
        assert now.ledger.opened_total - now.ledger.closed_total == now.ledger.open
        ledger = replace(now.ledger, opened_total=0, closed_total=0)
        return replace(now, finished_total=0, failed_total=0, ledger=ledger)


@contextlib.asynccontextmanager
async def router(engines: list[EngineProcess], settings: ServerSettings) -> AsyncIterator[Front]:
    any_port = "127.0.0.1:0"
    server = RouterServer(replace(settings, listen=any_port, admin_listen=any_port, health_listen=any_port))
    try:
        addresses = await server.start()
        async with (
            grpc.aio.insecure_channel(addresses.listen, [("grpc.use_local_subchannel_pool", 1)]) as public,
            grpc.aio.insecure_channel(addresses.listen, STALLS) as stalling,
            grpc.aio.insecure_channel(addresses.admin_listen) as admin,
        ):
            workers = worker_service_pb2_grpc.WorkerServiceStub(admin)
            for engine in engines:
                spec = worker_spec_pb2.WorkerSpec(url=f"grpc://{engine.address}", worker_type=TYPES[engine.mode])
                created = await workers.CreateWorker(worker_service_pb2.CreateWorkerRequest(spec=spec))
                asked = worker_service_pb2.GetWorkerRequest(worker_id=created.worker.id)
                async with asyncio.timeout(30):
                    while (await workers.GetWorker(asked)).worker.status != worker_pb2.WORKER_STATUS_READY:  # noqa: ASYNC110
                        await asyncio.sleep(0.02)
            stubs = (router_service_pb2_grpc.RouterServiceStub(channel) for channel in (public, stalling))
            yield Front(server, *stubs)
    finally:
        await server.close(in_a_hurry=True)


def ask(max_tokens: int, *, top: int = 0, **fields: object) -> generate_pb2.GenerateRequest:
    request = generate_pb2.GenerateRequest(
        token_ids=message_pb2.TokenIds(ids=PROMPT),
        sampling=sampling_pb2.SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True),
        output=generate_pb2.OUTPUT_MODE_TOKENS,
        **fields,  # type: ignore[arg-type]
    )
    if top:
        request.logprobs.output = True
        request.logprobs.top = top
    return request


async def settles(claim: Callable[[], bool], what: str, *, within_s: float = 10.0) -> None:
    """Wait until `claim()` holds; fails by name."""
    until_s = time.monotonic() + within_s
    while not claim():
        assert time.monotonic() < until_s, f"not within {within_s} s: {what}"
        await asyncio.sleep(0.02)


async def end_of(call: Stream) -> TandemError | None:
    """Read a call to its end; its error."""
    try:
        while await call.read() is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as error:
        return decode(error.trailing_metadata())
    return None


async def test_two_thousand_opens_at_once_are_each_served_or_told_when_to_come_again(
    alone: list[EngineProcess],
) -> None:
    settings = ServerSettings(runtime=RuntimeSettings(max_in_flight=32, max_queued=400))
    async with router(alone, settings) as front:
        before = front.books()
        calls = [front.stub.Generate(ask(2)) for _ in range(BURST)]
        ends = [await end_of(call) for call in calls]
        refused = [end for end in ends if end is not None]
        print(f"{BURST - len(refused)} served, {len(refused)} refused")
        assert {end.reason for end in refused} == {Reason.TOO_MANY_REQUESTS}
        assert all(end.retry_after_s is not None for end in refused)
        assert front.server.statistics().finished_total == BURST - len(refused) >= 32 + 400
        await settles(lambda: front.books() == before, "the router's books are as before")


async def test_a_waiting_client_over_the_wire_is_told_its_place(alone: list[EngineProcess]) -> None:
    settings = ServerSettings(runtime=RuntimeSettings(max_in_flight=1))
    async with router(alone, settings) as front:
        first = front.stub.Generate(ask(3000, request_id="first"))
        await first.read()
        waiting = ask(1)
        waiting.queue_updates.FromMilliseconds(100)
        second = front.stub.Generate(waiting)
        told = await second.read()
        assert isinstance(told, generate_result_pb2.GenerateResponse)
        assert (told.WhichOneof("event"), told.queue.position, told.queue.length) == ("queue", 0, 1)
        first.cancel()
        events = []
        while isinstance(message := await second.read(), generate_result_pb2.GenerateResponse):
            events.append(message.WhichOneof("event"))
        assert [event for event in events if event != "queue"] == ["chunk", "finished"]


async def test_a_live_request_id_is_refused_and_abort_by_id_says_how_far_it_was(pair: list[EngineProcess]) -> None:
    async with router(pair, ServerSettings(runtime=BRIEF_GRACE)) as front:
        before = front.books()
        call = front.stub.Generate(ask(2000, request_id="mine"))
        for _ in range(5):
            await call.read()
        twin = await end_of(front.stub.Generate(ask(1, request_id="mine")))
        assert twin is not None
        assert twin.reason is Reason.REQUEST_ID_IN_USE
        answer = await front.stub.Abort(router_service_pb2.AbortRequest(request_id="mine"))
        assert answer.completion_tokens >= 5
        ended = await end_of(call)
        assert ended is not None
        assert ended.reason is Reason.REQUEST_CANCELLED
        await settles(lambda: front.books() == before, "the router's books are as before")
        await settles(lambda: all(engine.is_idle() for engine in pair), "engines are idle")


async def test_an_expired_deadline_frees_both_engines(pair: list[EngineProcess]) -> None:
    async with router(pair, ServerSettings(runtime=BRIEF_GRACE)) as front:
        before = front.books()
        calls = [front.stub.Generate(ask(2000), timeout=0.05 * number + 0.02) for number in range(10)]
        for call in calls:
            assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await settles(lambda: front.books() == before, "the router's books are as before")
        await settles(lambda: all(engine.is_idle() for engine in pair), "engines are idle")


async def test_a_client_that_reads_nothing_is_slow_after_the_stated_time(pair: list[EngineProcess]) -> None:
    async with router(pair, ServerSettings(slow_client_timeout_s=0.5, runtime=BRIEF_GRACE)) as front:
        before = front.books()
        call = front.stalling.Generate(ask(2000, top=20))
        await call.read()
        await settles(lambda: front.books() == before, "the call was ended", within_s=5.0)
        ended = await end_of(call)
        assert ended is not None
        assert ended.reason is Reason.SLOW_CLIENT
        await settles(lambda: all(engine.is_idle() for engine in pair), "engines are idle")


async def test_a_client_that_overfills_its_buffer_is_slow_at_once(pair: list[EngineProcess]) -> None:
    runtime = replace(BRIEF_GRACE, max_stream_buffer_bytes=64 * 1024)
    async with router(pair, ServerSettings(runtime=runtime)) as front:
        before = front.books()
        call = front.stalling.Generate(ask(2000, top=20))
        await call.read()
        await settles(lambda: front.books() == before, "the call was ended", within_s=5.0)
        ended = await end_of(call)
        assert ended is not None
        assert ended.reason is Reason.SLOW_CLIENT


@pytest.mark.parametrize("seed", [1])
async def test_clients_that_leave_at_random_moments_leave_nothing_behind(pair: list[EngineProcess], seed: int) -> None:
    print(f"seed {seed}")
    chance = random.Random(seed)

    async def leave(front: Front, number: int) -> None:
        stops_reading = number % 2 == 1
        stub = front.stalling if stops_reading else front.stub
        call = stub.Generate(ask(400, top=20 if stops_reading else 0, request_id=f"r{number}"))
        leaves_s = asyncio.get_running_loop().time() + chance.uniform(0.0, 0.4)
        reads = chance.randrange(3) if stops_reading else 400
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(leaves_s):
                for _ in range(reads):
                    await call.read()
                await asyncio.Event().wait()
        call.cancel()
        assert await call.code() is grpc.StatusCode.CANCELLED

    async with router(pair, ServerSettings(runtime=BRIEF_GRACE)) as front:
        assert await end_of(front.stub.Generate(ask(5))) is None
        before = front.books()
        began_s = time.monotonic()
        for first in range(0, CANCELS, 20):
            async with asyncio.TaskGroup() as clients:
                for number in range(first, first + 20):
                    clients.create_task(leave(front, number))
        failed = front.server.statistics().failed_total
        await settles(lambda: front.books() == before, "the router's books are as before")
        await settles(lambda: all(engine.is_idle() for engine in pair), "engines are idle")
        print(f"{CANCELS} cancels in {time.monotonic() - began_s:.1f} s, {failed} reached the router")
        assert await end_of(front.stub.Generate(ask(5))) is None
        assert front.server.statistics().finished_total == 2

"""The whole router in this process, over real gRPC, with short times: what an operator and a client see of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import grpc.aio

from tandem.v1 import (
    generate_pb2,
    generate_result_pb2,
    job_pb2,
    job_service_pb2,
    job_service_pb2_grpc,
    message_pb2,
    router_service_pb2_grpc,
    sampling_pb2,
    watch_pb2,
    worker_pb2,
    worker_service_pb2,
    worker_service_pb2_grpc,
    worker_spec_pb2,
)
from tandem_router.errors import Reason
from tandem_router.model.settings import HealthSettings, JobSettings, RuntimeSettings
from tandem_router.model.spec import RuntimeType, WorkerType
from tandem_router.server import RouterServer
from tandem_router.settings import ServerSettings
from tandem_router.testing.grpc_engines import GrpcScript, Meeting, ScriptedGrpcEngine
from tandem_router.wire.status import decode

QUICK = RuntimeSettings(
    jobs=JobSettings(max_connection_attempts=2, connect_backoff_initial_s=0.01, connect_backoff_max_s=0.02),
    health=HealthSettings(check_interval_s=0.3, success_threshold=1, failure_threshold=2),
    transfer_grace_s=0.5,
)
"""Waits between tries are short; the time for an answer is not, since a busy machine is no failure."""
IMPATIENT = replace(
    QUICK,
    jobs=replace(QUICK.jobs, connect_timeout_s=1.0, max_connection_attempts=1),
    health=replace(QUICK.health, timeout_s=1.0),
)
"""For engines that never answer."""
_TYPES = {
    WorkerType.REGULAR: worker_spec_pb2.WORKER_TYPE_REGULAR,
    WorkerType.PREFILL: worker_spec_pb2.WORKER_TYPE_PREFILL,
    WorkerType.DECODE: worker_spec_pb2.WORKER_TYPE_DECODE,
}
RUNTIMES = {
    runtime: worker_spec_pb2.RuntimeType.Value(f"RUNTIME_TYPE_{runtime.value}")
    for runtime in (
        RuntimeType.SGLANG,
        RuntimeType.VLLM,
        RuntimeType.TRTLLM,
        RuntimeType.TOKENSPEED,
        RuntimeType.MLX,
    )
}


@dataclass
class Answer:
    """What one call to Generate gave."""

    tokens: dict[int, list[int]] = field(default_factory=dict)
    finished: generate_result_pb2.Finished | None = None
    code: grpc.StatusCode = grpc.StatusCode.OK
    reason: Reason | None = None
    message: str = ""
    field_name: str | None = None


@dataclass
class Registered:
    """One worker after its registration job has ended."""

    worker_id: str
    job: Any

    @property
    def failed_step(self) -> str | None:
        """Name of the step that failed, or None."""
        return next((step.name for step in self.job.steps if step.state == job_pb2.STEP_STATE_FAILED), None)


class RouterWorld:
    """A router and stubs of its services."""

    def __init__(self, server: RouterServer, public: grpc.aio.Channel, admin: grpc.aio.Channel) -> None:
        self.server = server
        self.router = router_service_pb2_grpc.RouterServiceStub(public)
        self.workers = worker_service_pb2_grpc.WorkerServiceStub(admin)
        self.jobs = job_service_pb2_grpc.JobServiceStub(admin)

    async def register(
        self,
        engine: ScriptedGrpcEngine,
        *,
        states_runtime: bool = True,
        within_s: float = 30.0,
        api_key: str | None = None,
        ca_pem: bytes | None = None,
        **spec: Any,
    ) -> Registered:
        """Create a worker and watch its job to the end; fails when the job is stuck."""
        wanted = {"url": engine.url, "worker_type": _TYPES[engine.script.mode], **spec}
        if states_runtime:
            wanted.setdefault("runtime_type", RUNTIMES[engine.script.runtime])
        request = worker_service_pb2.CreateWorkerRequest(spec=worker_spec_pb2.WorkerSpec(**wanted))
        if api_key is not None:
            request.credentials.api_key = api_key
        if ca_pem is not None:
            request.credentials.tls_ca_pem = ca_pem
        created = await self.workers.CreateWorker(request)
        job = await self.job_end(created.job.id, within_s=within_s)
        return Registered(created.worker.id, job)

    async def add(self, engine: ScriptedGrpcEngine, **spec: Any) -> str:
        """Create a worker that must become READY; its id."""
        registered = await self.register(engine, **spec)
        assert registered.job.state == job_pb2.JOB_STATE_SUCCEEDED, registered.job.failure.message
        await self.until_status(registered.worker_id, worker_pb2.WORKER_STATUS_READY)
        return registered.worker_id

    async def job_end(self, job_id: str, *, within_s: float = 30.0) -> Any:
        """The final record of a job, read from its watch."""
        last = None
        async for event in self.jobs.WatchJob(job_service_pb2.WatchJobRequest(job_id=job_id), timeout=within_s):
            if event.type in (
                watch_pb2.WATCH_EVENT_TYPE_SNAPSHOT,
                watch_pb2.WATCH_EVENT_TYPE_ADDED,
                watch_pb2.WATCH_EVENT_TYPE_UPDATED,
            ):
                last = event.job
        assert last is not None
        return last

    async def worker(self, worker_id: str, *, include_load: bool = False) -> Any:
        """The worker as GetWorker shows it."""
        request = worker_service_pb2.GetWorkerRequest(worker_id=worker_id, include_load=include_load)
        return (await self.workers.GetWorker(request)).worker

    async def condition(self, worker_id: str, kind: str) -> Any | None:
        """One condition of a worker, or None."""
        return next((item for item in (await self.worker(worker_id)).conditions if item.type == kind), None)

    async def delete(self, worker_id: str) -> None:
        """Delete a worker and wait until its job has ended."""
        answer = await self.workers.DeleteWorker(worker_service_pb2.DeleteWorkerRequest(worker_id=worker_id))
        if answer.HasField("job"):
            await self.job_end(answer.job.id)

    async def until_status(self, worker_id: str, status: int, *, within_s: float = 15.0) -> None:
        """Wait until a worker has a status."""
        name = worker_pb2.WorkerStatus.Name(status)

        async def has_it() -> bool:
            return bool((await self.worker(worker_id)).status == status)

        await until(has_it, within_s=within_s, what=f"worker is {name}")

    def request(self, *token_ids: int, model: str = "tiny", **sampling: Any) -> generate_pb2.GenerateRequest:
        """A request for tokens; without max_tokens it asks for four."""
        sampling.setdefault("max_tokens", 4)
        return generate_pb2.GenerateRequest(
            model=model,
            token_ids=message_pb2.TokenIds(ids=token_ids),
            sampling=sampling_pb2.SamplingParams(**sampling),
            output=generate_pb2.OUTPUT_MODE_TOKENS,
        )

    async def generate(
        self,
        request: generate_pb2.GenerateRequest,
        *,
        on_chunk: Callable[[], None] | None = None,
        within_s: float = 30.0,
    ) -> Answer:
        """Carry a request out to its end."""
        answer = Answer()
        try:
            async for response in self.router.Generate(request, timeout=within_s):
                if response.HasField("chunk"):
                    answer.tokens.setdefault(response.chunk.index, []).extend(response.chunk.token_ids)
                    if on_chunk is not None:
                        on_chunk()
                elif response.HasField("finished"):
                    answer.finished = response.finished
        except grpc.aio.AioRpcError as error:
            answer.code, answer.message = error.code(), error.details() or ""
            told = decode([(key, value) for key, value in error.trailing_metadata() or ()])
            if told is not None:
                answer.reason, answer.field_name = told.reason, told.field
        return answer

    def held(self) -> tuple[int, int, int]:
        """Connections, credentials and probes that the control loop holds."""
        now = self.server._control.statistics()
        return now.open_clients, now.credentials, now.probes

    async def until_idle(self, engines: Iterable[ScriptedGrpcEngine] = (), *, within_s: float = 15.0) -> None:
        """Wait until nothing of any request is left, here and on the engines."""

        async def is_idle() -> bool:
            now = self.server.statistics()
            ours = (now.live_requests, now.live_attempts, now.live_rooms, now.tasks, now.ledger.open)
            return not any(ours) and all(engine.open_calls == 0 and engine.running == 0 for engine in engines)

        await until(is_idle, within_s=within_s, what=f"nothing is left: {self.server.statistics()}")


async def until(claim: Callable[[], Any], *, within_s: float, what: str) -> None:
    """Wait until an awaitable claim holds; fails by name when it does not hold in time."""
    deadline_s = asyncio.get_running_loop().time() + within_s
    while not await claim():
        assert asyncio.get_running_loop().time() < deadline_s, f"not within {within_s} s: {what}"
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def router(runtime: RuntimeSettings = QUICK) -> AsyncIterator[RouterWorld]:
    """A started router; closed in a hurry."""
    anywhere = "127.0.0.1:0"
    server = RouterServer(
        ServerSettings(
            listen=anywhere,
            admin_listen=anywhere,
            health_listen=anywhere,
            metrics_listen=anywhere,
            runtime=runtime,
        )
    )
    try:
        addresses = await server.start()
        async with (
            grpc.aio.insecure_channel(addresses.listen) as public,
            grpc.aio.insecure_channel(addresses.admin_listen) as admin,
        ):
            yield RouterWorld(server, public, admin)
    finally:
        await server.close(in_a_hurry=True)


@dataclass
class PairWorld:
    """A router with one prefill and one decode engine registered and READY."""

    world: RouterWorld
    prefill: ScriptedGrpcEngine
    decode: ScriptedGrpcEngine
    prefill_id: str
    decode_id: str
    meeting: Meeting


@contextlib.asynccontextmanager
async def pair(
    runtime_type: RuntimeType,
    settings: RuntimeSettings = QUICK,
    spec: dict[str, Any] | None = None,
    meeting: Meeting | None = None,
    **script: Any,
) -> AsyncIterator[PairWorld]:
    """A pair of one protocol, beside something that listens at the bootstrap port. spec: of the prefill worker."""
    meeting = meeting or Meeting()
    async with contextlib.AsyncExitStack() as stack:
        knocked = await asyncio.start_server(_hang_up, script.get("host", "127.0.0.1"), 0)
        stack.push_async_callback(_close, knocked)
        script.setdefault("bootstrap_port", knocked.sockets[0].getsockname()[1])
        prefill, decode = (
            ScriptedGrpcEngine(GrpcScript(runtime_type, mode=mode, **script), meeting)
            for mode in (WorkerType.PREFILL, WorkerType.DECODE)
        )
        await stack.enter_async_context(prefill)
        await stack.enter_async_context(decode)
        world = await stack.enter_async_context(router(settings))
        stated = dict(spec or {})
        if script.get("kv_connector") == "MooncakeConnector":
            stated["bootstrap_port"] = script["bootstrap_port"]  # this engine does not tell it
        prefill_id = await world.add(prefill, **stated)
        decode_id = await world.add(decode)
        yield PairWorld(world, prefill, decode, prefill_id, decode_id, meeting)


async def _hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def _close(server: asyncio.Server) -> None:
    server.close()
    await server.wait_closed()

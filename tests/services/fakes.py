"""Stand-ins for the runtime, and servers on a unix socket in front of them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc
from tests.services.operated import FakeEngines

from tandem_router.core.registry import Registry
from tandem_router.core.watch_pairs import PairTable
from tandem_router.core.watch_workers import WorkerHistory
from tandem_router.errors import Reason, TandemError
from tandem_router.model.embedding import Embedded, EmbedRequest
from tandem_router.model.explanation import Clash, Explanation, Judged
from tandem_router.model.failure import Failure
from tandem_router.model.ids import JobId, PairId, RankKey, WorkerId
from tandem_router.model.job import Job, JobState, JobStep, JobType
from tandem_router.model.pairing import HandshakeKind, LegState, PairState, PairView
from tandem_router.model.request import GenerateRequest, RequestContext, ServingMode
from tandem_router.model.settings import WatchSettings
from tandem_router.model.spec import RuntimeType, WorkerSpec, WorkerType
from tandem_router.model.spec_patch import SpecPatch
from tandem_router.model.stream import (
    Attempt,
    ChoiceEnd,
    Finished,
    FinishReason,
    OutputChunk,
    PhaseTimings,
    ServedBy,
    Usage,
)
from tandem_router.model.tokenizer_source import TokenizerSource
from tandem_router.model.worker import (
    Credentials,
    CredentialsPatch,
    Drain,
    Rank,
    RankLoad,
    Worker,
    WorkerFacts,
    WorkerStatus,
)
from tandem_router.offload.health_board import HealthBoard
from tandem_router.ports import TokenSink
from tandem_router.runtime.models import ServedModel, served_models
from tandem_router.runtime.relay import AbortedCall
from tandem_router.runtime.watch import Watches
from tandem_router.services.adapter import AdapterServicer
from tandem_router.services.cache import CacheServicer
from tandem_router.services.health import HealthServicer
from tandem_router.services.job import JobServicer
from tandem_router.services.listeners import TransportLimits, admin_server, router_server
from tandem_router.services.pair import PairServicer
from tandem_router.services.profile import ProfileServicer
from tandem_router.services.router import RouterLimits, RouterServicer
from tandem_router.services.worker import WorkerServicer

WATCH = WatchSettings(log_capacity=4096, max_lag=256)
W1, W2, J1 = (f"00000000-0000-4000-8000-00000000000{n}" for n in (1, 2, 9))


def worker(worker_id: str, kind: WorkerType, *, model: str = "tiny", created_at_s: float = 1.0) -> Worker:
    return Worker(
        id=WorkerId(worker_id),
        spec=WorkerSpec(url="grpc://h:1", worker_type=kind, labels={"kind": kind.value}),
        url="grpc://h:1",
        status=WorkerStatus.READY,
        revision=4,
        generation=1,
        epoch=1,
        created_at_s=created_at_s,
        updated_at_s=2.0,
        facts=WorkerFacts(RuntimeType.SGLANG, model, served_names=(model, f"{model}-alias")),
        ranks=(Rank(0),),
        current_job=JobId(J1),
    )


JOB = Job(JobId(J1), JobType.REGISTER_WORKER, WorkerId(W1), JobState.RUNNING, (JobStep("connect"),), 3, 1.0)


@dataclass
class FakeRegistry:
    workers: list[Worker] = field(default_factory=list)
    created: list[tuple[WorkerSpec, Credentials | None, str | None]] = field(default_factory=list)
    deleted: list[tuple[str, float | None, bool]] = field(default_factory=list)
    calls: list[tuple[object, ...]] = field(default_factory=list)
    fault: Exception | None = None
    revision: int = 7

    async def create_worker(
        self, spec: WorkerSpec, credentials: Credentials | None, request_id: str | None
    ) -> tuple[Worker, Job]:
        self.created.append((spec, credentials, request_id))
        return worker(W1, WorkerType.PREFILL), JOB

    async def get_worker(self, worker_id: str) -> Worker:
        if self.fault is not None:
            raise self.fault
        for one in self.workers:
            if one.id == worker_id:
                return one
        raise TandemError(Reason.WORKER_NOT_FOUND, "no such worker", metadata={"worker_id": worker_id})

    async def with_loads(self, workers: Sequence[Worker]) -> tuple[Worker, ...]:
        loads = RankLoad(running=3, waiting=1, used_tokens=40, max_tokens=100, sampled_at_s=0.0)
        return tuple(replace(each, ranks=(Rank(0, load=loads),)) for each in workers)

    async def list_workers(self) -> tuple[Worker, ...]:
        return tuple(self.workers)

    async def replace_worker(
        self, worker_id: str, spec: WorkerSpec, credentials: CredentialsPatch | None, expected_generation: int | None
    ) -> tuple[Worker, Job]:
        self.calls.append(("replace", worker_id, spec, credentials, expected_generation))
        return await self.get_worker(worker_id), JOB

    async def update_worker(
        self, worker_id: str, patch: SpecPatch, credentials: CredentialsPatch | None, expected_generation: int | None
    ) -> tuple[Worker, Job | None]:
        self.calls.append(("update", worker_id, patch, credentials, expected_generation))
        return await self.get_worker(worker_id), None

    async def drain_worker(
        self, worker_id: str, timeout_s: float | None, reason: str, expected_generation: int | None
    ) -> tuple[Worker, Job]:
        self.calls.append(("drain", worker_id, timeout_s, reason, expected_generation))
        drained = replace(
            await self.get_worker(worker_id), status=WorkerStatus.DRAINING, drain=Drain(9.0, 10.5, reason)
        )
        return drained, JOB

    async def undrain_worker(self, worker_id: str, expected_generation: int | None) -> Worker:
        self.calls.append(("undrain", worker_id, expected_generation))
        return await self.get_worker(worker_id)

    async def delete_worker(
        self, worker_id: str, drain_timeout_s: float | None, force: bool, expected_generation: int | None
    ) -> Job:
        self.deleted.append((worker_id, drain_timeout_s, force))
        self.calls.append(("delete", worker_id, drain_timeout_s, force, expected_generation))
        return JOB

    async def cancel_job(self, job_id: str, reason: str) -> Job:
        self.calls.append(("cancel", job_id, reason))
        return replace(JOB, cancel=Failure(Reason.REQUEST_CANCELLED, reason))

    def open_legs(self, worker_id: WorkerId) -> int:
        return 2

    def models(self) -> tuple[ServedModel, ...]:
        return served_models(self.workers)

    async def get_job(self, job_id: str) -> Job:
        if job_id != J1:
            raise TandemError(Reason.JOB_NOT_FOUND, "no such job", metadata={"job_id": job_id})
        return JOB

    async def list_jobs(self) -> tuple[Job, ...]:
        return (JOB,)


SERVED = ServedBy(PairId("p"), HandshakeKind.RENDEZVOUS, WorkerId(W2), 0, WorkerId(W1), 0, 1030)
FINISHED = Finished(
    "tiny",
    (ChoiceEnd(0, FinishReason.STOP),),
    Usage(2, 2, 0),
    PhaseTimings(0.1, 0.1, 0.1, 0.0, 0.1, 0.4),
    SERVED,
    (Attempt(1, SERVED),),
)

EMBEDDED = Embedded("tiny", ((0.6, 0.8), (1.0, 0.0)), Usage(5, 0, 0), (Attempt(1, SERVED), Attempt(2, SERVED)))

Script = Callable[[TokenSink], Awaitable[None]]


async def two_tokens(sink: TokenSink) -> None:
    await sink.chunk(OutputChunk(0, 1, (5,), "é"))
    await sink.chunk(OutputChunk(0, 2, (6,), "b"))
    await sink.finish(FINISHED)


class FakeCall:
    def __init__(self, script: Script, sink: TokenSink) -> None:
        self._answer: asyncio.Future[Failure | None] = asyncio.get_running_loop().create_future()
        self.cancelled = asyncio.Event()
        self._task = asyncio.create_task(self._run(script, sink))

    async def _run(self, script: Script, sink: TokenSink) -> None:
        try:
            await script(sink)
            self._settle(None)
        except TandemError as error:
            self._settle(Failure.of(error))

    def _settle(self, failure: Failure | None) -> None:
        if not self._answer.done():
            self._answer.set_result(failure)

    async def result(self) -> None:
        failure = await asyncio.shield(self._answer)
        if failure is not None:
            raise failure.to_error()

    def cancel(self, failure: Failure | None = None) -> None:
        # The write may have told of the client's leaving first; then the answer is there, and is the same.
        if not self._answer.done() or self._answer.result() is not None:
            self.cancelled.set()
        if not self._answer.done():
            self._settle(failure or Failure(Reason.REQUEST_CANCELLED, "cancelled"))
        self._task.cancel()


class FakeEmbedCall:
    def __init__(self, answer: Awaitable[Embedded]) -> None:
        self._answer = answer
        self.cancelled = asyncio.Event()

    async def result(self) -> Embedded:
        return await self._answer

    def cancel(self, failure: Failure | None = None) -> None:
        self.cancelled.set()


async def two_vectors() -> Embedded:
    return EMBEDDED


@dataclass
class FakeRelay:
    script: Script = two_tokens
    refusal: TandemError | None = None
    started: list[tuple[GenerateRequest, RequestContext]] = field(default_factory=list)
    calls: list[FakeCall] = field(default_factory=list)
    vectors: Callable[[], Awaitable[Embedded]] = two_vectors
    embedded: list[tuple[EmbedRequest, RequestContext]] = field(default_factory=list)
    embed_calls: list[FakeEmbedCall] = field(default_factory=list)
    explained: list[tuple[GenerateRequest, int | None]] = field(default_factory=list)

    def start(self, request: GenerateRequest, context: RequestContext, sink: TokenSink) -> FakeCall:
        if self.refusal is not None:
            raise self.refusal
        self.started.append((request, context))
        self.calls.append(FakeCall(self.script, sink))
        return self.calls[-1]

    def embed(self, request: EmbedRequest, context: RequestContext) -> FakeEmbedCall:
        if self.refusal is not None:
            raise self.refusal
        self.embedded.append((request, context))
        self.embed_calls.append(FakeEmbedCall(self.vectors()))
        return self.embed_calls[-1]

    def abort(self, principal: str, request_id: str) -> AbortedCall | None:
        is_known = any(request.request_id == request_id for request, _ in self.started)
        return AbortedCall(completion_tokens=3) if is_known else None

    async def explain(self, request: GenerateRequest, assumed_prompt_tokens: int | None) -> Explanation:
        self.explained.append((request, assumed_prompt_tokens))
        key, decode = RankKey(WorkerId(W1), 1, 0), RankKey(WorkerId(W2), 1, 0)
        left_out = Judged(WorkerId(W2), None, None, ("NOT_READY", "its status is DRAINING"), False)
        return Explanation(
            serving_mode=ServingMode.DISAGGREGATED,
            reason="PAIR_FITS",
            kind=HandshakeKind.RENDEZVOUS,
            connector="tcp",
            prefill=key,
            decode=decode,
            judged={
                WorkerType.PREFILL: (Judged(WorkerId(W1), 0, 1.0, None, True),),
                WorkerType.DECODE: (left_out,),
                WorkerType.REGULAR: (),
            },
            scorer="least_in_flight",
            clashes=(Clash(WorkerId(W1), WorkerId(W2), Failure(Reason.NO_COMPATIBLE_PAIR, "kv_dtype differs")),),
            failure=None,
            prompt_tokens=assumed_prompt_tokens,
        )

    def pairs(self) -> tuple[PairView, ...]:
        key, decode = RankKey(WorkerId(W1), 1, 0), RankKey(WorkerId(W2), 1, 0)
        done, runs, state = LegState.DONE, LegState.RUNNING, PairState.DECODING
        return (
            PairView(PairId("p"), "r", 1, HandshakeKind.RENDEZVOUS, state, key, done, decode, runs, 1030, 0.0),
            PairView(PairId("a"), "s", 1, HandshakeKind.AGGREGATE, state, None, None, key, runs, None, 0.0),
        )


class FakeCodec:
    vocab_size = 100

    async def encode(self, text: str, *, adds_special: bool) -> tuple[int, ...]:
        return tuple(text.encode())

    async def render_chat(self, messages: Sequence[tuple[str, str]]) -> str:
        return "".join(f"<{role}>{content}" for role, content in messages)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        return bytes(token_ids).decode()

    def stream(self, *, skip_special_tokens: bool, continues: bool) -> object:
        raise NotImplementedError


@dataclass
class FakeCodecs:
    codec: FakeCodec | None = field(default_factory=FakeCodec)

    def get(self, model: str) -> FakeCodec | None:
        return self.codec

    def source(self, model: str) -> TokenizerSource | None:
        raise NotImplementedError

    async def digest(self, archive: bytes) -> str:
        return hashlib.sha256(archive).hexdigest()

    async def load(self, model: str, archive: bytes | None, source: TokenizerSource) -> None:
        raise NotImplementedError


class FakeClock:
    def monotonic_s(self) -> float:
        return 1000.0

    def wall_s(self) -> float:
        return 5000.0


class FakeIds:
    def __init__(self) -> None:
        self.minted = 0

    def uuid(self) -> str:
        self.minted += 1
        return f"id-{self.minted}"


@dataclass
class House:
    """The fakes behind one pair of servers, and channels to them."""

    relay: FakeRelay
    registry: FakeRegistry
    codecs: FakeCodecs
    board: HealthBoard
    history: WorkerHistory
    pairs: PairTable
    watches: Watches
    engines: FakeEngines
    public: grpc.aio.Channel
    admin: grpc.aio.Channel


@asynccontextmanager
async def served(folder: Path) -> AsyncIterator[House]:
    relay, registry, codecs, ids = FakeRelay(), FakeRegistry(), FakeCodecs(), FakeIds()
    engines = FakeEngines()
    registry.workers = [worker(W1, WorkerType.PREFILL), worker(W2, WorkerType.DECODE, created_at_s=1.5)]
    clock, board, limits = FakeClock(), HealthBoard(stale_after_s=60.0), TransportLimits()
    router = RouterServicer(
        relay,
        registry,
        codecs,  # type: ignore[arg-type]  # FakeCodec.stream is never called
        clock,
        ids,
        lambda prefill, decode: True,
        RouterLimits(max_prompt_bytes=1000),
    )
    history, pairs = WorkerHistory(Registry(), capacity=WATCH.log_capacity), PairTable(capacity=WATCH.log_capacity)
    for view in relay.pairs():
        pairs.show(view, now_s=0.0)
    watches = Watches(history, pairs, WATCH)
    health = HealthServicer(board)
    public = router_server(router, health, ids, limits)
    admin = admin_server(
        WorkerServicer(registry, lambda key: 3, clock, watches),
        JobServicer(registry, watches),
        PairServicer(relay, watches, 1 << 20),
        AdapterServicer(engines, clock),
        CacheServicer(engines, clock),
        ProfileServicer(engines, clock),
        health,
        ids,
        limits,
    )
    public.add_insecure_port(f"unix:{folder}/public")
    admin.add_insecure_port(f"unix:{folder}/admin")
    await public.start()
    await admin.start()
    try:
        async with (
            grpc.aio.insecure_channel(f"unix:{folder}/public") as to_public,
            grpc.aio.insecure_channel(f"unix:{folder}/admin") as to_admin,
        ):
            yield House(relay, registry, codecs, board, history, pairs, watches, engines, to_public, to_admin)
    finally:
        await watches.close()
        await public.stop(None)
        await admin.stop(None)

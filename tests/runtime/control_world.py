"""A control loop in virtual time over processes that a test starts, kills and changes by hand."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from tandem_router.core.ledger import LegLedger, LegRow
from tandem_router.errors import Code, Reason
from tandem_router.model.detection import Asked, OnAsked
from tandem_router.model.failure import EngineFailure
from tandem_router.model.ids import RankKey, WorkerId
from tandem_router.model.job import Job
from tandem_router.model.pairing import BootstrapEndpoint, HandshakeKind, LegRole
from tandem_router.model.request import LegRequest
from tandem_router.model.settings import RuntimeSettings
from tandem_router.model.spec import RuntimeType, WorkerSpec, WorkerType
from tandem_router.model.tokenizer_source import TokenizerSource
from tandem_router.model.worker import Credentials, RankLoad, Worker, WorkerFacts, WorkerStatus
from tandem_router.ports import EngineCall
from tandem_router.runtime.control import Control
from tandem_router.store.memory import InMemoryStore
from tandem_router.testing.sim_loop import SimLoop
from tandem_router.testing.sim_ports import LoopClock, SeededIds, SeededRng

T = TypeVar("T")

FACTS = WorkerFacts(
    runtime_type=RuntimeType.SGLANG,
    model_id="tiny",
    handshake=HandshakeKind.RENDEZVOUS,
    instance="life 1",
    bootstrap=BootstrapEndpoint("10.0.0.1", 9000),
)


@dataclass
class Process:
    """An engine process at an address."""

    facts: WorkerFacts = FACTS
    is_up: bool = True
    is_stuck: bool = False
    """Takes connections and never answers."""
    is_serving: bool = True
    is_unknown: bool = False
    """Speaks no protocol of ours."""
    trace: tuple[Asked, ...] = (Asked(RuntimeType.SGLANG, "OK", 0.003),)
    """What detection asks and hears."""
    last_item_s: float | None = None
    """When a stream of it last had an item."""
    is_bootstrap_up: bool = True
    tokenizer: bytes | None = b"archive"
    life: int = 1
    dials: int = 0
    clients: list[Client] = field(default_factory=list)
    on_describe: Callable[[], None] | None = None
    """Called whenever facts are asked for."""
    on_fetch: Callable[[float], None] | None = None
    """Called with the timeout whenever the tokenizer is asked for."""

    def restart(self, **facts: Any) -> None:
        self.life += 1
        self.is_up = True
        self.facts = replace(self.facts, instance=f"life {self.life}", **facts)

    @property
    def open_clients(self) -> int:
        return sum(not client.is_closed for client in self.clients)


class Client:
    """ports.EngineClient of one life of a process; a later life does not answer it."""

    def __init__(self, process: Process, spec: WorkerSpec, credentials: Credentials | None) -> None:
        self._process = process
        self._life = process.life
        self.spec = spec
        self.credentials = credentials
        self.is_closed = False
        self.follows_restarts = False
        """Behaves as a channel that reconnects by itself."""

    @property
    def last_sign_of_life_s(self) -> float | None:
        return self._process.last_item_s

    async def _ask(self) -> Process:
        process = self._process
        if process.is_stuck:
            await asyncio.get_running_loop().create_future()
        await asyncio.sleep(0.001)
        if not process.is_up or (process.life != self._life and not self.follows_restarts):
            raise EngineFailure(Reason.WORKER_LOST, "connection reset", connection_lost=True)
        return process

    def generate(self, leg: LegRequest, *, timeout_s: float | None) -> EngineCall:
        raise NotImplementedError

    async def abort(self, leg_id: str, *, timeout_s: float) -> None:
        await self._ask()

    async def probe(self, *, timeout_s: float) -> None:
        process = await self._ask()
        if not process.is_serving:
            raise EngineFailure(Reason.WORKER_REFUSED, "NOT_SERVING")

    async def describe(self, *, timeout_s: float) -> WorkerFacts:
        process = await self._ask()
        if process.on_describe is not None:
            process.on_describe()
        return process.facts

    async def loads(self, *, timeout_s: float) -> Sequence[RankLoad] | None:
        return None

    async def fetch_tokenizer(self, *, timeout_s: float) -> bytes | None:
        if self._process.on_fetch is not None:
            self._process.on_fetch(timeout_s)
        return (await self._ask()).tokenizer

    async def close(self) -> None:
        self.is_closed = True


class Dialer:
    """ports.EngineDialer over processes by URL."""

    def __init__(self) -> None:
        self.processes: dict[str, Process] = {}
        self.knocks: list[tuple[str, int]] = []
        self.gate: asyncio.Event | None = None
        """When set, dialling waits for it."""

    async def dial(
        self,
        spec: WorkerSpec,
        credentials: Credentials | None,
        *,
        timeout_s: float,
        on_asked: OnAsked | None = None,
    ) -> Client:
        process = self.processes.get(spec.url)
        if process is not None:
            process.dials += 1
        if self.gate is not None:
            await self.gate.wait()
        await asyncio.sleep(0.001)
        if process is None or not process.is_up:
            raise EngineFailure(Reason.WORKER_UNREACHABLE, "connection refused", was_sent=False, connection_lost=True)
        for asked in process.trace:
            if on_asked is not None:
                on_asked(asked)
        if process.is_unknown:
            raise EngineFailure(Reason.RUNTIME_NOT_DETECTED, "answers no engine protocol", code=Code.UNIMPLEMENTED)
        client = Client(process, spec, credentials)
        process.clients.append(client)
        return client

    async def probe_bootstrap(self, host: str, port: int, *, timeout_s: float) -> None:
        self.knocks.append((host, port))
        await asyncio.sleep(0.001)
        if any(not process.is_bootstrap_up for process in self.processes.values()):
            raise EngineFailure(Reason.WORKER_UNREACHABLE, "connection refused", connection_lost=True)


class Codecs:
    """ports.TextCodecs that keeps archives."""

    def __init__(self) -> None:
        self.archives: dict[str, bytes | None] = {}
        self.sources: dict[str, TokenizerSource] = {}

    def get(self, model: str) -> Any:
        return self.archives.get(model)

    def source(self, model: str) -> TokenizerSource | None:
        return self.sources.get(model)

    async def digest(self, archive: bytes) -> str:
        return hashlib.sha256(archive).hexdigest()

    async def load(self, model: str, archive: bytes | None, source: TokenizerSource) -> None:
        self.archives[model], self.sources[model] = archive, source


class SlowStore:
    """ports.Store that takes its time, so that callers meet each other, and that can be made to fail."""

    def __init__(self, commit_s: float = 0.0003) -> None:
        self.commit_s = commit_s
        self.is_broken = False

    async def commit(self, events: Sequence[object]) -> None:
        await asyncio.sleep(self.commit_s)
        if self.is_broken:
            raise OSError("disk full")


class Recorder:
    """ports.Observer that keeps everything."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def observe(self, event: object) -> None:
        self.events.append(event)


class World:
    """Everything a test needs in one place."""

    def __init__(self, settings: RuntimeSettings | None = None, seed: int = 7, store: Any = None) -> None:
        loop = asyncio.get_running_loop()
        self.dialer, self.codecs, self.recorder = Dialer(), Codecs(), Recorder()
        self.ledger = LegLedger()
        self.clock = LoopClock(loop)
        self.control = Control(
            clock=self.clock,
            ids=SeededIds(seed),
            rng=SeededRng(seed),
            store=store or InMemoryStore(),
            dialer=self.dialer,
            codecs=self.codecs,
            ledger=self.ledger,
            observer=self.recorder,
            settings=settings,
        )

    def process(self, url: str, **fields: Any) -> Process:
        process = Process(**fields)
        self.dialer.processes[url] = process
        return process

    async def ready(self, url: str, worker_type: WorkerType = WorkerType.REGULAR, **fields: Any) -> Worker:
        """Start a process, register it and wait until it is READY."""
        self.process(url, **fields)
        worker, _ = await self.control.create_worker(WorkerSpec(url, worker_type=worker_type))
        return await self.until(worker.id, WorkerStatus.READY)

    async def create(
        self, spec: WorkerSpec, credentials: Credentials | None = None, request_id: str | None = None
    ) -> tuple[Worker, Job]:
        """A create that is not the late repeat of another one, so there is a job."""
        worker, job = await self.control.create_worker(spec, credentials, request_id)
        assert job is not None
        return worker, job

    async def until(self, worker_id: str, status: WorkerStatus, *, within_s: float = 60.0) -> Worker:
        """The worker once it has that status; TimeoutError when it does not get there."""
        async with asyncio.timeout(within_s):
            while (worker := await self.control.get_worker(worker_id)).status is not status:  # noqa: ASYNC110 - virtual
                await asyncio.sleep(0.01)
            return worker

    async def ended(self, job_id: str, *, within_s: float = 3600.0) -> Any:
        """The job once it has ended."""
        async with asyncio.timeout(within_s):
            while not (job := await self.control.get_job(job_id)).state.is_final:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            return job

    def open_leg(self, worker: Worker, leg_id: str) -> RankKey:
        key = worker.rank_key(0)
        self.ledger.open(LegRow(leg_id, key, LegRole.DECODE, 1, 0.0))
        return key

    def condition(self, worker: Worker, type_: str) -> Any:
        return next((claim for claim in worker.conditions if claim.type == type_), None)

    def statuses(self, worker_id: WorkerId) -> list[WorkerStatus]:
        return [
            event.status
            for event in self.recorder.events
            if type(event).__name__ == "WorkerStatusChanged" and event.worker_id == worker_id
        ]


def play(
    scene: Callable[[World], Awaitable[T]], *, seed: int = 1, settings: RuntimeSettings | None = None, store: Any = None
) -> T:
    """Run a scene in virtual time; fails on a task left over or a lost exception. SimLoop's errors name the seed."""

    async def main() -> T:
        world = World(settings, store=store)
        await world.control.start()
        try:
            return await scene(world)
        finally:
            await world.control.close()

    return SimLoop(seed).run(main())

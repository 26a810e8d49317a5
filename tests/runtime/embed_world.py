"""Embed calls in virtual time: a relay over engines that make vectors as a test tells them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from tests.policies.fleet import fleet, worker

from tandem_router.core.ledger import LegLedger
from tandem_router.core.rooms import RoomAllocator
from tandem_router.errors import Reason, TandemError
from tandem_router.model.embedding import Embedded, EmbedLeg, EmbedRequest, Vector
from tandem_router.model.failure import EngineFailure
from tandem_router.model.ids import RankKey, WorkerId
from tandem_router.model.request import RequestContext
from tandem_router.model.settings import RuntimeSettings
from tandem_router.model.spec import WorkerType
from tandem_router.model.tokenizer_source import TokenizerSource
from tandem_router.model.worker import Worker
from tandem_router.policies.plan import Planner
from tandem_router.policies.scorers import LeastInFlight
from tandem_router.runtime.relay import Relay
from tandem_router.runtime.relay_call import EmbedCall
from tandem_router.runtime.relay_environment import RelayEnvironment
from tandem_router.testing.harness import Trace
from tandem_router.testing.sim_loop import Order, SimLoop
from tandem_router.testing.sim_ports import LoopClock, SeededIds, SeededRng

PRINCIPAL = "simulated"
T = TypeVar("T")


def vector_of(token_ids: Sequence[int]) -> tuple[float, ...]:
    """What every engine of the tests makes of a prompt."""
    return (float(len(token_ids)), float(token_ids[0]), float(token_ids[-1]), 1.0)


@dataclass
class Embedder:
    """One engine."""

    takes_s: float = 0.01
    fails: list[EngineFailure | TandemError] = field(default_factory=list)
    """What the next calls end with; afterwards they end well."""
    legs: list[EmbedLeg] = field(default_factory=list)
    limits_s: list[float | None] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    running: int = 0
    most_running: int = 0

    async def embed(self, leg: EmbedLeg, *, timeout_s: float | None) -> Vector:
        self.legs.append(leg)
        self.limits_s.append(timeout_s)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await asyncio.sleep(self.takes_s)
        except asyncio.CancelledError:
            self.cancelled.append(leg.leg_id)
            raise
        finally:
            self.running -= 1
        if self.fails:
            raise self.fails.pop(0)
        return Vector(vector_of(leg.token_ids), len(leg.token_ids))

    async def abort(self, leg_id: str, *, timeout_s: float) -> None:
        self.aborted.append(leg_id)


class EmbedFleet:
    """ports.Fleet of engines that embed."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self.snapshot: dict[WorkerId, Worker] = fleet(*workers)
        self.engines = {worker_id: Embedder() for worker_id in self.snapshot}
        self.failed: list[tuple[WorkerId, Reason]] = []
        self.succeeded = 0
        self.gone: set[WorkerId] = set()

    def workers(self) -> Mapping[WorkerId, Worker]:
        return self.snapshot

    def client(self, key: RankKey) -> Any:
        return None if key.worker_id in self.gone else self.engines[key.worker_id]

    def leg_failed(self, key: RankKey, failure: EngineFailure) -> None:
        self.failed.append((key.worker_id, failure.reason))

    def leg_succeeded(self, key: RankKey) -> None:
        self.succeeded += 1


class BytesCodec:
    """A token per byte; a text of question marks is one without tokens."""

    vocab_size = 256

    async def encode(self, text: str, *, adds_special: bool) -> tuple[int, ...]:
        assert adds_special
        return tuple(text.strip("?").encode())


class Codecs:
    def __init__(self, codec: BytesCodec | None) -> None:
        self.codec = codec

    def get(self, model: str) -> Any:
        return self.codec

    def source(self, model: str) -> TokenizerSource | None:
        raise NotImplementedError

    async def digest(self, archive: bytes) -> str:
        return hashlib.sha256(archive).hexdigest()

    async def load(self, model: str, archive: bytes | None, source: TokenizerSource) -> None:
        raise NotImplementedError


@dataclass
class EmbedWorld:
    relay: Relay
    fleet: EmbedFleet
    trace: Trace

    @property
    def engine(self) -> Embedder:
        """The only one, or the first."""
        return next(iter(self.fleet.engines.values()))

    def start(self, request: EmbedRequest, **context: Any) -> EmbedCall:
        return self.relay.embed(request, RequestContext(principal=PRINCIPAL, **context))

    async def ask(self, *inputs: str | tuple[int, ...], **fields: Any) -> Embedded:
        return await self.start(ask(*inputs, **fields)).result()

    async def refused(self, *inputs: str | tuple[int, ...], **fields: Any) -> TandemError:
        """The error that a call ends with."""
        try:
            await self.ask(*inputs, **fields)
        except TandemError as error:
            return error
        raise AssertionError("the call succeeded")

    def books(self) -> dict[str, int]:
        """What is live and should be nothing when idle."""
        now = self.relay.statistics()
        counts = {
            "live requests": now.live_requests,
            "queued": now.queued_requests,
            "attempts": now.live_attempts,
            "tasks": now.tasks,
            "open legs": now.ledger.open,
            "unclosed legs": now.ledger.opened_total - now.ledger.closed_total,
            "running in engines": sum(engine.running for engine in self.fleet.engines.values()),
        }
        return {name: count for name, count in counts.items() if count}


def ask(*inputs: str | tuple[int, ...], **fields: Any) -> EmbedRequest:
    return EmbedRequest(**{"request_id": "r", "model": "m", "inputs": inputs, **fields})


def embedder(number: int, **facts: Any) -> Worker:
    known = {"can_embed": True, "vocab_size": 300, "context_length": 40, **facts}
    return worker(number, WorkerType.REGULAR, **known)


def play(
    scene: Callable[[EmbedWorld], Awaitable[T]],
    *workers: Worker,
    settings: RuntimeSettings | None = None,
    codec: BytesCodec | None = None,
    seed: int = 0,
    order: Order = Order.FIFO,
) -> T:
    """Play a scene; nothing may be left a second after it."""
    loop = SimLoop(seed, order=order)
    settings = settings or RuntimeSettings()

    async def main() -> T:
        clock, trace = LoopClock(loop), Trace(loop)
        engines = EmbedFleet(workers or (embedder(1),))
        environment = RelayEnvironment(
            clock=clock,
            ids=SeededIds(seed),
            rng=SeededRng(seed, "relay"),
            fleet=engines,
            codecs=Codecs(codec),
            ledger=LegLedger(),
            rooms=RoomAllocator(settings.rooms, started_at_s=clock.monotonic_s(), started_at_wall_s=clock.wall_s()),
            planner=Planner(settings, LeastInFlight()),
            observer=trace,
            settings=settings,
        )
        world = EmbedWorld(Relay(environment), engines, trace)
        try:
            result = await scene(world)
            await asyncio.sleep(1.0)
            assert world.books() == {}
        finally:
            await world.relay.close()
        return result

    return loop.run(main())


def without(workers: Mapping[WorkerId, Worker], worker_id: WorkerId, **changes: Any) -> dict[WorkerId, Worker]:
    """The snapshot with one worker changed."""
    return {key: replace(each, **changes) if key == worker_id else each for key, each in workers.items()}

"""What the board says of each name, and that a beat waits for nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import pytest
from tests.services.fakes import W1, W2, worker

from tandem_router.model.ids import WorkerId
from tandem_router.model.spec import WorkerType
from tandem_router.model.worker import Worker, WorkerStatus
from tandem_router.offload.health_board import HealthBoard
from tandem_router.services.heartbeat import Heartbeat

READY, NOT_READY, FAILED = WorkerStatus.READY, WorkerStatus.NOT_READY, WorkerStatus.FAILED


class World:
    """A fleet that a test writes, and the board of it."""

    def __init__(self, *, fits: bool = True) -> None:
        self.workers: Mapping[WorkerId, Worker] = {}
        self.asked = 0
        self.board = HealthBoard(stale_after_s=60.0)
        self._fits = fits
        self.heartbeat = Heartbeat(self.board, lambda: self.workers, self._pair_fits, ("a.Service",))

    def _pair_fits(self, prefill: Worker, decode: Worker) -> bool:
        self.asked += 1
        return self._fits

    def beat(self, *workers: Worker) -> None:
        self.workers = MappingProxyType({one.id: one for one in workers})
        self.heartbeat.beat()


def one(worker_id: str, kind: WorkerType, status: WorkerStatus = READY) -> Worker:
    return replace(worker(worker_id, kind), status=status)


def test_router_without_workers_takes_requests() -> None:
    world = World()
    world.beat()
    assert world.board.listed() == {"": True, "readiness": True, "liveness": True, "a.Service": True}


@pytest.mark.parametrize("name", ["model/tiny", "model/tiny-alias"])
@pytest.mark.parametrize(
    ("workers", "fits", "serves"),
    [
        ([one(W1, WorkerType.REGULAR)], False, True),
        ([one(W1, WorkerType.REGULAR, NOT_READY)], True, False),
        ([one(W1, WorkerType.PREFILL)], True, False),
        ([one(W1, WorkerType.PREFILL), one(W2, WorkerType.DECODE)], True, True),
        ([one(W1, WorkerType.PREFILL), one(W2, WorkerType.DECODE)], False, False),
        ([one(W1, WorkerType.PREFILL), one(W2, WorkerType.DECODE, NOT_READY)], True, False),
        ([one(W1, WorkerType.REGULAR, FAILED)], True, None),
        ([], True, None),
    ],
)
def test_model_serves_while_somebody_can_answer_for_it(
    name: str, workers: list[Worker], fits: bool, serves: bool | None
) -> None:
    world = World(fits=fits)
    world.beat(*workers)
    assert world.board.serving(name) is serves


def test_draining_leaves_liveness_alone() -> None:
    world = World()
    world.beat(one(W1, WorkerType.REGULAR))
    world.heartbeat.drain()
    listed = world.board.listed()
    assert listed is not None
    assert [name for name, serves in listed.items() if serves] == ["liveness"]


def test_beat_after_drain_does_not_serve_again() -> None:
    world = World()
    world.heartbeat.drain()
    world.beat(one(W1, WorkerType.REGULAR))
    assert (world.board.serving(""), world.board.serving("model/tiny")) == (False, False)


def test_fleet_that_has_not_changed_is_not_looked_at_again() -> None:
    world = World()
    world.beat(one(W1, WorkerType.PREFILL), one(W2, WorkerType.DECODE))
    before = world.asked
    for _ in range(10):
        world.heartbeat.beat()
    assert (before, world.asked) == (1, 1)

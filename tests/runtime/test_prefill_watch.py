"""The worker that holds a handoff's blocks is looked after: what is told as its loss, and what is not."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from tests.policies.fleet import worker

from tandem_router.errors import Reason
from tandem_router.model.failure import Failure
from tandem_router.model.settings import RuntimeSettings
from tandem_router.model.spec import WorkerType
from tandem_router.model.worker import Condition, Worker
from tandem_router.runtime.block_holder import BlockHolder
from tandem_router.runtime.prefill_watch import PrefillWatch
from tandem_router.testing.sim_loop import SimLoop

PREFILL = worker(1, WorkerType.PREFILL, instance="boot-1")
BEGAN_S = 1_000.0
"""Wall clock when prefill answered."""
HEALTH = RuntimeSettings().health
PATIENCE_S = HEALTH.success_threshold * (HEALTH.check_interval_s + HEALTH.timeout_s)


def changed(instance: str, epochs: int = 1) -> Worker:
    assert PREFILL.facts is not None
    return replace(PREFILL, epoch=PREFILL.epoch + epochs, facts=replace(PREFILL.facts, instance=instance))


def not_serving(at_s: float) -> Worker:
    return replace(PREFILL, conditions=(Condition("SERVING", False, "PROBE_FAILED", "", BEGAN_S + at_s),))


def serving(at_s: float) -> Worker:
    return replace(PREFILL, conditions=(Condition("SERVING", True, "SERVING", "", BEGAN_S + at_s),))


class Clock:
    """Virtual, from BEGAN_S on."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop, self._zero_s = loop, loop.time()

    def wall_s(self) -> float:
        return BEGAN_S + self._loop.time() - self._zero_s


def told_of(
    *then: Worker | None, first: Worker = PREFILL, is_stopped: bool = False, is_outwaited: bool = True
) -> list[tuple[Failure, float]]:
    """What a watch that began on `first` tells within minutes of its becoming `then`, one after the other, and when."""
    loop = SimLoop(3)
    fleet = {first.id: first}
    clock = Clock(loop)
    env: Any = SimpleNamespace(
        clock=clock, fleet=SimpleNamespace(workers=lambda: fleet), settings=SimpleNamespace(health=HEALTH)
    )
    told: list[tuple[Failure, float]] = []
    holder = BlockHolder(PREFILL.rank_key(0), "boot-1", BEGAN_S, is_outwaited)

    async def scene() -> None:
        watch = PrefillWatch(env, holder, lambda loss: told.append((loss, clock.wall_s() - BEGAN_S)))
        for each in then:
            await asyncio.sleep(5.0)
            assert told == []
            fleet.clear()
            fleet.update({} if each is None else {each.id: each})
        if is_stopped:
            watch.stop()
        await asyncio.sleep(120.0)
        watch.stop()

    loop.run(scene())
    return told


@pytest.mark.parametrize(
    "then", [None, changed("boot-2"), changed(""), not_serving(5.0)], ids=["removed", "another", "unknown", "dead"]
)
def test_a_loss_is_told_once_and_within_a_look(then: Worker | None) -> None:
    ((failure, at_s),) = told_of(then)
    assert failure.reason is Reason.KV_TRANSFER_FAILED
    assert failure.metadata["leg"] == "prefill"
    assert at_s <= 6.0


@pytest.mark.parametrize("then", [PREFILL, changed("boot-1"), serving(5.0)], ids=["well", "redialled", "well-again"])
def test_a_process_that_still_has_the_blocks_is_not_lost(then: Worker) -> None:
    assert told_of(then) == []


def test_one_that_was_down_when_it_answered_and_stays_down_is_lost_when_it_had_time_to_come_back() -> None:
    down = not_serving(-3.0)
    ((failure, at_s),) = told_of(down, first=down)
    assert failure.reason is Reason.KV_TRANSFER_FAILED
    assert PATIENCE_S <= at_s <= PATIENCE_S + 1.0


def test_one_that_was_down_when_it_answered_and_comes_back_was_busy() -> None:
    assert told_of(serving(5.0), first=not_serving(-3.0)) == []


def test_one_that_came_back_and_goes_down_again_is_lost() -> None:
    ((_, at_s),) = told_of(serving(5.0), not_serving(10.0), first=not_serving(-3.0))
    assert at_s <= 11.0


@pytest.mark.parametrize(
    ("then", "count"), [(None, 1), (changed("boot-2"), 1), (not_serving(5.0), 0)], ids=["removed", "another", "silent"]
)
def test_a_decode_that_fails_by_itself_is_only_told_of_a_certain_loss(then: Worker | None, count: int) -> None:
    assert len(told_of(then, is_outwaited=False)) == count


def test_a_stopped_watch_tells_nothing() -> None:
    assert told_of(None, is_stopped=True) == []

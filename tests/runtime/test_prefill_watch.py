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
from tandem_router.model.spec import WorkerType
from tandem_router.model.worker import Condition, Worker
from tandem_router.runtime.prefill_watch import PrefillWatch
from tandem_router.testing.sim_loop import SimLoop
from tandem_router.testing.sim_ports import LoopClock

PREFILL = worker(1, WorkerType.PREFILL, instance="boot-1")


def changed(instance: str, epochs: int = 1) -> Worker:
    assert PREFILL.facts is not None
    return replace(PREFILL, epoch=PREFILL.epoch + epochs, facts=replace(PREFILL.facts, instance=instance))


def not_serving(at_s: float) -> Worker:
    return replace(PREFILL, conditions=(Condition("SERVING", False, "PROBE_FAILED", "", at_s),))


def told_of(then: Worker | None, *, is_stopped: bool = False) -> list[Failure]:
    """What a watch that began on PREFILL tells within a minute of its becoming `then`."""
    loop = SimLoop(3)
    fleet = {PREFILL.id: PREFILL}
    env: Any = SimpleNamespace(clock=LoopClock(loop), fleet=SimpleNamespace(workers=lambda: fleet))
    told: list[Failure] = []

    async def scene() -> None:
        watch = PrefillWatch(env, PREFILL.rank_key(0), told.append)
        await asyncio.sleep(5.0)
        assert told == []
        fleet.clear()
        fleet.update({} if then is None else {then.id: then})
        if is_stopped:
            watch.stop()
        await asyncio.sleep(60.0)
        watch.stop()

    loop.run(scene())
    return told


@pytest.mark.parametrize(
    "then", [None, changed("boot-2"), changed(""), not_serving(1e12)], ids=["removed", "another", "unknown", "dead"]
)
def test_a_loss_is_told_once(then: Worker | None) -> None:
    (failure,) = told_of(then)
    assert failure.reason is Reason.KV_TRANSFER_FAILED
    assert failure.metadata["leg"] == "prefill"


@pytest.mark.parametrize(
    "then", [PREFILL, changed("boot-1"), not_serving(0.0)], ids=["well", "redialled", "busy-before"]
)
def test_a_process_that_still_has_the_blocks_is_not_lost(then: Worker) -> None:
    assert told_of(then) == []


def test_a_stopped_watch_tells_nothing() -> None:
    assert told_of(None, is_stopped=True) == []

"""Operations on engines: who is asked, for how long, and what the caller is told when some or all of them fail."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from tests.policies.fleet import worker
from tests.runtime.operated_engines import OperatedFleet

from tandem_router.errors import Code, Reason, TandemError
from tandem_router.model.failure import EngineFailure
from tandem_router.model.ids import WorkerId
from tandem_router.model.operations import FlushCache, Operation, StartProfile, StopProfile
from tandem_router.model.selection import WorkerOutcome, WorkerSelection
from tandem_router.model.spec import WorkerType
from tandem_router.model.worker import WorkerStatus
from tandem_router.runtime.operations import MAX_AT_ONCE

R, P, D = WorkerType.REGULAR, WorkerType.PREFILL, WorkerType.DECODE
M = WorkerSelection(model="m")
FLUSH = FlushCache()
NOBODY = WorkerId("00000000-0000-4000-8000-999999999999")


def three() -> OperatedFleet:
    return OperatedFleet(worker(1, P), worker(2, D), worker(3, R))


def carried_out(
    fleet: OperatedFleet,
    operation: Operation = FLUSH,
    selection: WorkerSelection = M,
    within_s: float | None = None,
) -> tuple[WorkerOutcome, ...]:
    async def call() -> tuple[WorkerOutcome, ...]:
        deadline_s = None if within_s is None else fleet.loop.time() + within_s
        return await fleet.operations.carry_out(operation, selection, deadline_s)

    return fleet.play(call())


def test_a_model_means_its_ready_workers_of_every_type() -> None:
    fleet = OperatedFleet(worker(1, P), worker(2, D, status=WorkerStatus.DRAINING), worker(3, R))
    outcomes = carried_out(fleet)
    assert [(one.worker_id[-1], one.message, one.failure) for one in outcomes] == [
        ("1", "done", None),
        ("3", "done", None),
    ]
    assert fleet.engine(1).asked == []


def test_outcomes_come_in_the_order_in_which_workers_were_named() -> None:
    fleet = three()
    fleet.engine(2).takes_s = 5.0
    names = tuple(reversed(fleet.snapshot))
    assert [one.worker_id for one in carried_out(fleet, selection=WorkerSelection(names))] == list(names)


def test_one_failure_leaves_the_others_their_success() -> None:
    fleet = three()
    fleet.engine(1).fails = EngineFailure(Reason.ENGINE_ERROR, "requests are running", code=Code.OK)
    good, bad, other = carried_out(fleet)
    assert (good.failure, other.failure) == (None, None)
    assert bad.failure is not None
    assert (bad.failure.reason, bad.failure.sentence) == (Reason.ENGINE_ERROR, "requests are running")


def test_where_all_fail_the_first_failure_is_the_call_s_with_worker_and_count() -> None:
    fleet = three()
    for number in range(3):
        fleet.engine(number).fails = EngineFailure(Reason.RUNTIME_CANNOT_FLUSH_CACHE, "no such rpc")
    with pytest.raises(TandemError, match=r"no such rpc, and all of 3 workers failed") as refused:
        carried_out(fleet)
    assert refused.value.reason is Reason.RUNTIME_CANNOT_FLUSH_CACHE
    assert refused.value.metadata == {"worker_id": next(iter(fleet.snapshot)), "failed_workers": "3"}


def test_the_field_that_an_engine_complains_of_is_told_of_one_worker_and_of_all() -> None:
    fleet = three()
    fails = EngineFailure(Reason.ADAPTER_NOT_LOADABLE, "no such file", code=Code.OK, field="path")
    fleet.engine(1).fails = fails
    assert [one.failure and one.failure.field for one in carried_out(fleet)] == [None, "path", None]
    fleet = three()
    for number in range(3):
        fleet.engine(number).fails = fails
    with pytest.raises(TandemError) as refused:
        carried_out(fleet)
    assert refused.value.field == "path"


def test_a_named_worker_that_is_not_ready_is_told_apart_from_one_that_failed() -> None:
    fleet = OperatedFleet(worker(1, R), worker(2, R, status=WorkerStatus.NOT_READY))
    good, out = carried_out(fleet, selection=WorkerSelection(tuple(fleet.snapshot)))
    assert good.failure is None
    assert out.failure is not None
    assert (out.failure.reason, out.failure.sentence) == (Reason.NO_READY_WORKER, "its status is NOT_READY")
    assert fleet.engine(1).asked == []


@pytest.mark.parametrize(
    ("selection", "status", "reason"),
    [
        pytest.param(WorkerSelection((NOBODY,)), WorkerStatus.READY, Reason.WORKER_NOT_FOUND, id="no such worker"),
        pytest.param(WorkerSelection(model="x"), WorkerStatus.READY, Reason.MODEL_NOT_FOUND, id="no such model"),
        pytest.param(M, WorkerStatus.DRAINING, Reason.NO_READY_WORKER, id="model without a READY worker"),
        pytest.param(
            WorkerSelection((worker(1, R).id,)), WorkerStatus.FAILED, Reason.NO_READY_WORKER, id="worker not READY"
        ),
    ],
)
def test_a_selection_of_nobody_is_refused(selection: WorkerSelection, status: WorkerStatus, reason: Reason) -> None:
    fleet = OperatedFleet(worker(1, R, status=status))
    with pytest.raises(TandemError) as refused:
        carried_out(fleet, selection=selection)
    assert refused.value.reason is reason
    assert fleet.engine(0).asked == []


def test_one_whose_turn_never_came_is_not_asked_and_told_of_so() -> None:
    fleet = OperatedFleet(*(worker(number, R) for number in range(1, MAX_AT_ONCE + 2)))
    for number in range(MAX_AT_ONCE + 1):
        fleet.engine(number).takes_s = 5.0
    with pytest.raises(TandemError):
        carried_out(fleet, within_s=2.0)
    assert sum(not engine.asked for engine in fleet.engines.values()) == 1


def test_an_engine_that_is_late_is_told_of_before_the_caller_gives_up() -> None:
    fleet = three()
    fleet.engine(0).takes_s = 100.0
    late, good, _ = carried_out(fleet, within_s=2.0)
    assert good.failure is None
    assert late.failure is not None
    assert late.failure.reason is Reason.TOTAL_TIMEOUT
    assert 1.7 < fleet.took_s < 2.0
    assert fleet.engine(0).running == 0


@pytest.mark.parametrize(("after_s", "reason"), [(1.75, Reason.TOTAL_TIMEOUT), (0.5, Reason.ENGINE_ERROR)])
def test_only_a_deadline_that_is_over_is_the_caller_s(after_s: float, reason: Reason) -> None:
    fleet = OperatedFleet(worker(1, R))
    fleet.engine(0).takes_s = after_s
    fleet.engine(0).fails = EngineFailure(Reason.ENGINE_ERROR, "no answer", code=Code.DEADLINE_EXCEEDED)
    with pytest.raises(TandemError) as refused:
        carried_out(fleet, within_s=2.0)
    assert refused.value.reason is reason


@pytest.mark.parametrize(
    ("operation", "limit_s"),
    [(FlushCache(), 60.0), (FlushCache(wait_idle_s=90.0), 150.0), (StartProfile(), 60.0), (StopProfile(), 600.0)],
    ids=["flush", "flush that waits", "start", "stop"],
)
def test_without_a_deadline_an_operation_has_its_own_limit(operation: Operation, limit_s: float) -> None:
    fleet = OperatedFleet(worker(1, R))
    carried_out(fleet, operation)
    assert fleet.engine(0).limits_s == [limit_s]


def test_at_most_32_engines_are_worked_on_at_a_time() -> None:
    fleet = OperatedFleet(*(worker(number, R) for number in range(1, 41)))
    shared = fleet.engine(0)
    fleet.engines = dict.fromkeys(fleet.engines, shared)
    assert len(carried_out(fleet)) == 40
    assert (len(shared.asked), shared.most_running) == (40, 32)


def test_a_caller_that_leaves_ends_what_runs() -> None:
    fleet = three()
    fleet.engine(0).takes_s = 50.0

    async def leave() -> None:
        call = asyncio.create_task(fleet.operations.carry_out(FlushCache(), M, None))
        await asyncio.sleep(1.0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)

    fleet.play(leave())
    assert fleet.took_s < 2.0
    assert [fleet.engine(number).running for number in range(3)] == [0, 0, 0]


@pytest.mark.parametrize("is_lost", [True, False])
def test_a_broken_connection_is_news_of_the_worker(is_lost: bool) -> None:
    fleet = three()
    fleet.engine(1).fails = EngineFailure(Reason.WORKER_LOST, "reset", connection_lost=is_lost)
    carried_out(fleet)
    assert fleet.lost == ([list(fleet.snapshot)[1]] if is_lost else [])


def test_a_life_that_is_over_is_not_asked() -> None:
    fleet = OperatedFleet(worker(1, R), worker(2, R))
    fleet.engines.pop(worker(1, R).id)
    lost, good = carried_out(fleet)
    assert good.failure is None
    assert lost.failure is not None
    assert lost.failure.reason is Reason.WORKER_LOST


def test_an_alias_chooses_a_model_s_workers_too() -> None:
    one = worker(1, R)
    assert one.facts is not None
    named = replace(one, facts=replace(one.facts, served_names=("m", "short")))
    assert len(carried_out(OperatedFleet(named), selection=WorkerSelection(model="short"))) == 1

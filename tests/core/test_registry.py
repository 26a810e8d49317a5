"""Facts of the registry that no sequence of commands is needed for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tandem_router.core.commands import (
    BeginStep,
    CreateWorker,
    EndStep,
    RecordFacts,
    SetAdapters,
    SetConditions,
    StartJob,
)
from tandem_router.core.events import JobForgotten
from tandem_router.core.proposals import propose
from tandem_router.core.registry import MAX_REQUEST_IDS, REQUEST_ID_TTL_S, Registry
from tandem_router.errors import Reason, TandemError
from tandem_router.model.adapters import LoadedAdapter
from tandem_router.model.ids import JobId, WorkerId
from tandem_router.model.job import StepState
from tandem_router.model.settings import JobSettings
from tandem_router.model.spec import RuntimeType, WorkerSpec
from tandem_router.model.worker import Condition, WorkerFacts


def created(registry: Registry, number: int = 1, request_id: str | None = None) -> tuple[WorkerId, JobId]:
    worker_id, job_id = WorkerId(f"w{number}"), JobId(f"j{number}")
    spec = WorkerSpec(f"grpc://host-{number}:1")
    registry.apply(propose(registry, CreateWorker(worker_id, job_id, spec, False, request_id), 5.0).events)
    return worker_id, job_id


def test_a_snapshot_does_not_change_when_the_registry_does() -> None:
    registry = Registry()
    created(registry, 1)
    before = registry.workers()
    created(registry, 2)
    assert list(before) == ["w1"]
    assert list(registry.workers()) == ["w1", "w2"]


def test_a_snapshot_is_the_same_object_until_something_changes() -> None:
    registry = Registry()
    created(registry)
    assert registry.workers() is registry.workers()


def test_a_snapshot_cannot_be_written() -> None:
    registry = Registry()
    with pytest.raises(TypeError):
        registry.workers()["w"] = None  # type: ignore[index]


@pytest.mark.parametrize("revision", [0, 2])
def test_events_out_of_order_are_a_fault(revision: int) -> None:
    with pytest.raises(ValueError, match="does not follow 0"):
        Registry().apply([JobForgotten(revision, 0.0, JobId("j"))])


def test_a_jobs_step_raises_its_workers_revision() -> None:
    registry = Registry()
    worker_id, job_id = created(registry)
    for command in (StartJob(job_id), BeginStep(job_id, "connect")):
        registry.apply(propose(registry, command, 6.0).events)
        worker = registry.worker(worker_id)
        assert worker is not None
        assert worker.revision == registry.revision
        assert worker.generation == 1


def test_a_condition_keeps_the_time_of_its_last_change_of_truth() -> None:
    registry = Registry()
    worker_id, _ = created(registry)

    def claim(is_true: bool, message: str, now_s: float) -> Condition:
        command = SetConditions(worker_id, 0, (Condition("X", is_true, "R", message, 0.0),))
        registry.apply(propose(registry, command, now_s).events)
        worker = registry.worker(worker_id)
        assert worker is not None
        return worker.conditions[0]

    assert claim(True, "a", 10.0).changed_at_s == 10.0
    assert claim(True, "b", 20.0).changed_at_s == 10.0
    assert claim(False, "b", 30.0).changed_at_s == 30.0


def test_a_condition_that_says_nothing_new_is_no_event() -> None:
    registry = Registry()
    worker_id, _ = created(registry)
    command = SetConditions(worker_id, 0, (Condition("X", True, "R", "", 0.0),))
    registry.apply(propose(registry, command, 10.0).events)
    assert propose(registry, command, 20.0).events == ()


def test_adapters_read_again_change_those_facts_alone() -> None:
    registry = Registry()
    worker_id, _ = created(registry)
    facts = WorkerFacts(RuntimeType.SGLANG, "tiny", applies_adapters=True)
    registry.apply(propose(registry, RecordFacts(worker_id, 0, facts, ()), 6.0).events)
    adapters = (LoadedAdapter("de"),)
    [event] = propose(registry, SetAdapters(worker_id, 0, adapters), 7.0).events
    registry.apply([event])
    worker = registry.worker(worker_id)
    assert worker is not None
    assert (worker.facts, worker.revision) == (replace(facts, adapters=adapters), event.revision)
    assert propose(registry, SetAdapters(worker_id, 0, adapters), 8.0).events == ()


@pytest.mark.parametrize(("epoch", "has_facts"), [(1, True), (0, False)], ids=["another life", "before any facts"])
def test_adapters_of_another_life_are_stale(epoch: int, has_facts: bool) -> None:
    registry = Registry()
    worker_id, _ = created(registry)
    if has_facts:
        facts = WorkerFacts(RuntimeType.SGLANG, "tiny")
        registry.apply(propose(registry, RecordFacts(worker_id, 0, facts, ()), 6.0).events)
    proposal = propose(registry, SetAdapters(worker_id, epoch, (LoadedAdapter("de"),)), 7.0)
    assert (proposal.is_stale, proposal.events) == (True, ())


def test_a_report_of_a_job_that_does_not_run_is_stale() -> None:
    registry = Registry()
    _, job_id = created(registry)
    proposal = propose(registry, EndStep(job_id, "connect", StepState.SUCCEEDED), 6.0)
    assert (proposal.is_stale, proposal.events) == (True, ())


def test_request_ids_are_remembered_up_to_the_bound_and_the_oldest_goes_first() -> None:
    registry = Registry(JobSettings(max_queued=MAX_REQUEST_IDS * 2))
    for number in range(MAX_REQUEST_IDS + 1):
        created(registry, number, f"r{number}")
    assert registry.statistics().request_ids == MAX_REQUEST_IDS
    assert registry.created_by("r0", 5.0) is None
    assert registry.created_by("r1", 5.0) is not None


def test_a_request_id_is_remembered_for_a_day() -> None:
    registry = Registry()
    created(registry, 1, "r")
    assert registry.created_by("r", 5.0 + REQUEST_ID_TTL_S) is not None
    assert registry.created_by("r", 6.0 + REQUEST_ID_TTL_S) is None


def test_a_dp_rank_outside_its_size_is_refused_by_field() -> None:
    registry = Registry()
    spec = WorkerSpec("grpc://host:1", dp_rank=2, dp_size=2)
    with pytest.raises(TandemError) as caught:
        propose(registry, CreateWorker(WorkerId("w"), JobId("j"), spec, False), 5.0)
    assert (caught.value.reason, caught.value.field) == (Reason.INVALID_REQUEST, "spec.dp_rank")

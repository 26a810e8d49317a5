"""Every event of the registry as the change of one worker; every state of a job for who follows it."""

from __future__ import annotations

from tandem_router.core.events import (
    JobCreated,
    JobEnded,
    JobForgotten,
    JobStarted,
    WorkerCreated,
    WorkerRemoved,
    WorkerStatusChanged,
)
from tandem_router.core.registry import Registry
from tandem_router.core.watch_workers import WorkerHistory
from tandem_router.model.ids import JobId, WorkerId
from tandem_router.model.job import Job, JobState, JobType
from tandem_router.model.spec import WorkerSpec
from tandem_router.model.worker import WorkerStatus

W, J = WorkerId("w"), JobId("j")


def created(history: WorkerHistory) -> None:
    history.apply(
        [
            WorkerCreated(1, 1.0, W, "grpc://h:1", WorkerSpec("grpc://h:1"), False, None, J),
            JobCreated(2, 2.0, J, JobType.REGISTER_WORKER, W, ()),
        ]
    )


def after(history: WorkerHistory, revision: int) -> tuple[WorkerStatus, int, JobState | None] | None:
    change = history.log.change(revision)
    if change is None or change.after is None:
        return None
    reading = change.after
    return reading.worker.status, reading.worker.revision, None if reading.job is None else reading.job.state


def test_a_job_s_change_is_a_change_of_its_worker() -> None:
    history = WorkerHistory(Registry())
    created(history)
    history.apply([JobStarted(3, 3.0, J)])
    assert [after(history, revision) for revision in (1, 2, 3)] == [
        (WorkerStatus.PENDING, 1, None),
        (WorkerStatus.PENDING, 2, JobState.PENDING),
        (WorkerStatus.PENDING, 3, JobState.RUNNING),
    ]


def test_events_of_one_batch_are_told_one_by_one() -> None:
    history = WorkerHistory(Registry())
    created(history)
    history.apply(
        [WorkerStatusChanged(3, 3.0, W, WorkerStatus.READY), WorkerStatusChanged(4, 4.0, W, WorkerStatus.NOT_READY)]
    )
    assert [after(history, revision) for revision in (3, 4)] == [
        (WorkerStatus.READY, 3, JobState.PENDING),
        (WorkerStatus.NOT_READY, 4, JobState.PENDING),
    ]


def test_a_removed_worker_leaves_its_last_state() -> None:
    history = WorkerHistory(Registry())
    created(history)
    history.apply([JobEnded(3, 3.0, J, JobState.CANCELLED), WorkerRemoved(4, 4.0, W, "deleted")])
    change = history.log.change(4)
    assert change is not None
    assert change.after is None
    assert change.before is not None
    assert (change.before.worker.revision, history.log.current()) == (3, ())


def test_what_no_worker_shows_is_a_revision_all_the_same() -> None:
    history = WorkerHistory(Registry())
    created(history)
    history.apply(
        [JobEnded(3, 3.0, J, JobState.CANCELLED), WorkerRemoved(4, 4.0, W, "deleted"), JobForgotten(5, 5.0, J)]
    )
    assert (history.log.revision, history.log.change(5)) == (5, None)


def test_the_log_s_revision_is_the_registry_s_from_any_beginning() -> None:
    registry = Registry(revision=1_000)
    history = WorkerHistory(registry)
    history.apply([WorkerCreated(1_001, 1.0, W, "grpc://h:1", WorkerSpec("grpc://h:1"), False, None, J)])
    assert history.log.revision == registry.revision == 1_001


def test_a_follower_is_told_every_state_of_its_job_and_of_no_other() -> None:
    history, states = WorkerHistory(Registry()), []
    created(history)

    def told(job: Job) -> None:
        states.append(job.state)

    end = history.follow(J, told)
    history.apply(
        [
            JobCreated(3, 3.0, JobId("other"), JobType.REMOVE_WORKER, W, ()),
            JobStarted(4, 4.0, J),
            JobEnded(5, 5.0, J, JobState.SUCCEEDED),
            JobForgotten(6, 6.0, J),
        ]
    )
    end()
    assert (states, history.followed_jobs) == ([JobState.RUNNING, JobState.SUCCEEDED], 0)

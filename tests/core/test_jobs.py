"""Job states, and the book of jobs."""

from __future__ import annotations

from itertools import product

import pytest

from tandem_router.core.events import JobCreated, JobEnded, JobForgotten, JobStarted, JobStepChanged
from tandem_router.core.jobs import STEPS, TRANSITIONS, JobBook, JobInput, begun, ended, steps_of
from tandem_router.errors import Reason
from tandem_router.model.failure import Failure
from tandem_router.model.ids import JobId, WorkerId
from tandem_router.model.job import JobState, JobStep, JobType, StepState

LEGAL = {
    (JobState.PENDING, JobInput.START),
    (JobState.PENDING, JobInput.FAIL),
    (JobState.PENDING, JobInput.CANCEL),
    (JobState.RUNNING, JobInput.SUCCEED),
    (JobState.RUNNING, JobInput.FAIL),
    (JobState.RUNNING, JobInput.CANCEL),
}
FAILURE = Failure(Reason.WORKER_UNREACHABLE, "refused")
ID = JobId("j")


@pytest.mark.parametrize(("state", "happened"), list(product(JobState, JobInput)))
def test_every_state_takes_exactly_its_inputs(state: JobState, happened: JobInput) -> None:
    assert ((state, happened) in TRANSITIONS) is ((state, happened) in LEGAL)


def test_final_states_take_nothing() -> None:
    assert not any(state.is_final for state, _ in TRANSITIONS)


def a_running_job(at_s: float = 1.0) -> JobBook:
    book = JobBook()
    book.apply(JobCreated(1, at_s, ID, JobType.REMOVE_WORKER, WorkerId("w"), steps_of(JobType.REMOVE_WORKER)))
    book.apply(JobStarted(2, at_s + 1, ID))
    return book


def test_a_fresh_job_shows_all_its_steps_as_pending() -> None:
    steps = steps_of(JobType.REGISTER_WORKER)
    assert [step.name for step in steps] == list(STEPS[JobType.REGISTER_WORKER])
    assert {step.state for step in steps} == {StepState.PENDING}


def test_a_step_that_is_tried_again_keeps_its_start_and_its_last_failure() -> None:
    step = begun(JobStep("connect"), 10.0, "")
    step = ended(step, 11.0, StepState.RUNNING, "try 1 of 2 failed", FAILURE)
    assert (step.attempts, step.started_at_s, step.ended_at_s, step.failure) == (1, 10.0, None, FAILURE)
    step = ended(begun(step, 12.0, ""), 13.0, StepState.SUCCEEDED, "connected", None)
    assert (step.attempts, step.started_at_s, step.ended_at_s, step.failure) == (2, 10.0, 13.0, None)


@pytest.mark.parametrize(
    ("end", "running"),
    [
        (JobState.FAILED, StepState.FAILED),
        (JobState.CANCELLED, StepState.SKIPPED),
        (JobState.SUCCEEDED, StepState.SKIPPED),
    ],
)
def test_an_ended_job_has_no_step_that_runs_or_waits(end: JobState, running: StepState) -> None:
    book = a_running_job()
    job = book.get(ID)
    assert job is not None
    book.apply(JobStepChanged(3, 3.0, ID, 0, begun(job.steps[0], 3.0, "")))
    book.apply(JobEnded(4, 4.0, ID, end, FAILURE if end is JobState.FAILED else None))
    job = book.get(ID)
    assert job is not None
    assert [step.state for step in job.steps] == [running, StepState.SKIPPED]
    assert (job.state, job.ended_at_s, job.revision) == (end, 4.0, 4)


def test_the_book_counts_jobs_that_have_not_ended() -> None:
    book = a_running_job()
    assert book.open_count == 1
    book.apply(JobEnded(3, 3.0, ID, JobState.SUCCEEDED))
    assert book.open_count == 0


def test_a_job_expires_by_its_end_and_a_running_one_never() -> None:
    book = a_running_job()
    assert book.first_end_s() is None
    assert book.expired(1e9) == ()
    book.apply(JobEnded(3, 3.0, ID, JobState.SUCCEEDED))
    assert book.first_end_s() == 3.0
    assert book.expired(2.9) == ()
    assert book.expired(3.0) == (ID,)
    book.apply(JobForgotten(4, 9.0, ID))
    assert (book.get(ID), book.all(), book.first_end_s()) == (None, (), None)

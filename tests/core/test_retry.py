"""The attempt loop: no retry after a token, none without time, none that cannot help; backoff within its bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem_router.core.retry import AttemptLoop, GiveUp, Retry
from tandem_router.errors import TABLE, Reason
from tandem_router.model.failure import Failure
from tandem_router.model.ids import WorkerId
from tandem_router.model.settings import RetrySettings

WORKER = WorkerId("00000000-0000-4000-8000-000000000001")


def decide(loop: AttemptLoop, reason: Reason = Reason.WORKER_LOST, **changes: object) -> Retry | GiveUp:
    arguments: dict[str, object] = {
        "blamed": (WORKER,),
        "is_committed": False,
        "now_s": 0.0,
        "deadline_s": None,
        "random": 0.5,
    }
    return loop.decide(Failure(reason, "x"), **{**arguments, **changes})  # type: ignore[arg-type]


def begun(attempts: int = 1) -> AttemptLoop:
    loop = AttemptLoop(RetrySettings())
    for _ in range(attempts):
        loop.begin()
    return loop


@pytest.mark.parametrize("reason", Reason)
def test_only_reasons_that_another_worker_may_not_share_are_retried(reason: Reason) -> None:
    assert isinstance(decide(begun(), reason), Retry) == TABLE[reason].retryable


def test_a_committed_request_is_never_retried() -> None:
    assert isinstance(decide(begun(), is_committed=True), GiveUp)


def test_attempts_are_bounded() -> None:
    assert isinstance(decide(begun(RetrySettings().max_attempts)), GiveUp)


def test_no_retry_begins_at_or_after_the_deadline() -> None:
    assert isinstance(decide(begun(), now_s=10.0, deadline_s=10.0), GiveUp)
    assert isinstance(decide(begun(), now_s=9.0, deadline_s=10.0), Retry)


def test_the_blamed_worker_is_avoided_from_then_on() -> None:
    loop = begun()
    decide(loop)
    assert list(loop.avoid) == [WORKER]


@given(attempt=st.integers(1, 2), random=st.floats(0, 1, exclude_max=True))
def test_backoff_stays_within_its_bounds(attempt: int, random: float) -> None:
    settings = RetrySettings()
    decision = decide(begun(attempt), random=random)
    assert isinstance(decision, Retry)
    full = min(settings.initial_backoff_s * settings.multiplier ** (attempt - 1), settings.max_backoff_s)
    assert full * (1 - settings.jitter) <= decision.after_s <= full

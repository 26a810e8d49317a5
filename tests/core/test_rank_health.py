"""A rank is out after failures of its own engine in a row, and a trial later it has one more chance."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tandem_router.core.rank_health import FAILURES, RankHealths
from tandem_router.errors import Reason
from tandem_router.model.ids import RankKey, WorkerId

WORKER = WorkerId("00000000-0000-4000-8000-000000000001")
RANKS = [RankKey(WORKER, epoch, rank) for epoch in (1, 2) for rank in (0, 1)]
COUNTED = {Reason.ENGINE_ERROR, Reason.ENGINE_PROTOCOL_ERROR}


@given(steps=st.lists(st.tuples(st.sampled_from(RANKS), st.sampled_from([*Reason, None])), max_size=60))
def test_a_rank_is_out_exactly_after_that_many_engine_failures_in_a_row(
    steps: list[tuple[RankKey, Reason | None]],
) -> None:
    healths = RankHealths()
    row = dict.fromkeys(RANKS, 0)
    for key, reason in steps:
        if reason is None:
            healths.succeeded(key)
            row[key] = 0
            continue
        row[key] += reason in COUNTED
        assert healths.failed(key, reason) == (reason in COUNTED and row[key] >= FAILURES)
    assert len(healths) == sum(count > 0 for count in row.values())


def test_on_trial_one_failure_is_enough_and_one_success_clears() -> None:
    healths = RankHealths()
    healths.on_trial(RANKS[0])
    assert healths.failed(RANKS[0], Reason.ENGINE_ERROR)
    healths.on_trial(RANKS[0])
    healths.succeeded(RANKS[0])
    assert not healths.failed(RANKS[0], Reason.ENGINE_ERROR)


def test_lives_that_are_over_leave_nothing() -> None:
    healths = RankHealths()
    for key in RANKS[:2]:
        healths.failed(key, Reason.ENGINE_ERROR)
    healths.retain(lambda key: key == RANKS[1])
    assert len(healths) == 1


def test_what_is_forgotten_leaves_nothing() -> None:
    healths = RankHealths()
    healths.failed(RANKS[0], Reason.ENGINE_ERROR)
    healths.forget(RANKS[0])
    healths.forget(RANKS[0])
    assert len(healths) == 0

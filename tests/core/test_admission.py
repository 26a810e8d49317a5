"""The limit and the queue: order, bounds, and that no slot is lost or given twice."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tandem_router.core.admission import Admission, Entry, Standing, Ticket


def full(queued: list[int], *, max_queued: int = 10) -> tuple[Admission, Ticket, list[Ticket]]:
    """One slot, taken, and these priorities in the queue: (admission, the runner, the waiting in arrival order)."""
    admission = Admission(max_running=1, max_queued=max_queued)
    _, runner = admission.arrive(0)
    return admission, runner, [admission.arrive(priority)[1] for priority in queued]


def test_up_to_the_limit_everybody_runs_and_the_next_waits() -> None:
    admission = Admission(max_running=2, max_queued=1)
    assert [admission.arrive(0)[0] for _ in range(4)] == [Entry.RUNS, Entry.RUNS, Entry.WAITS, Entry.FULL]


def test_without_a_queue_who_cannot_run_is_turned_away() -> None:
    admission = Admission(max_running=1, max_queued=0)
    admission.arrive(0)
    assert admission.arrive(100)[0] is Entry.FULL


def test_higher_priorities_run_first_and_equal_ones_by_arrival() -> None:
    admission, runner, (low, first, second, high) = full([-5, 0, 0, 7])
    ran = [runner]
    while (following := admission.leave(ran[-1])) is not None:
        ran.append(following)
    assert ran == [runner, high, first, second, low]


def test_who_gives_up_waiting_lets_nobody_run() -> None:
    admission, _, (one, other) = full([0, 0])
    assert admission.leave(one) is None
    assert (admission.running, admission.standing(other)) == (1, Standing(0, 1))


def test_leaving_twice_frees_one_slot() -> None:
    admission, runner, (one, other) = full([0, 0])
    assert admission.leave(runner) == one
    assert admission.leave(runner) is None
    assert admission.standing(other) == Standing(0, 1)


def test_standing_counts_who_goes_first_and_not_who_came_first() -> None:
    admission, _, (early, late) = full([0, 9])
    assert (admission.standing(early), admission.standing(late)) == (Standing(1, 2), Standing(0, 2))


def test_a_runner_stands_nowhere() -> None:
    admission, runner, _ = full([0])
    assert admission.standing(runner) is None


@given(st.lists(st.tuples(st.booleans(), st.integers(-100, 100), st.integers(0, 50)), max_size=200), st.integers(1, 4))
def test_slots_are_full_whenever_somebody_waits(steps: list[tuple[bool, int, int]], limit: int) -> None:
    admission = Admission(max_running=limit, max_queued=5)
    live: list[Ticket] = []
    for arrives, priority, which in steps:
        if arrives:
            entry, ticket = admission.arrive(priority)
            if entry is not Entry.FULL:
                live.append(ticket)
        elif live:
            admission.leave(live.pop(which % len(live)))
        assert admission.running + admission.waiting == len(live)
        assert admission.running == min(limit, len(live))

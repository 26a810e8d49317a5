"""The watch log: a table and its last changes that move together; no gap, no repeat, or compacted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem_router.core.watch_log import Change, WatchLog, first_revision
from tandem_router.errors import Reason, TandemError


def filled(changes: int, *, capacity: int = 100, revision: int = 0) -> WatchLog[str, int]:
    log: WatchLog[str, int] = WatchLog(revision=revision, capacity=capacity)
    for number in range(1, changes + 1):
        log.put("a", number)
    return log


@given(st.integers(1, 20), st.integers(0, 60), st.integers(-5, 70), st.sampled_from((0, 1_000)))
def test_what_is_kept_can_be_resumed_from_and_the_rest_is_compacted(
    capacity: int, written: int, asked: int, base: int
) -> None:
    log = filled(written, capacity=capacity, revision=base)
    oldest, asked = base + max(0, written - capacity), base + asked
    if oldest <= asked <= base + written:
        log.check(asked)
        later = [log.change(revision) for revision in range(asked + 1, base + written + 1)]
        assert [None if change is None else change.after for change in later] == [
            revision - base for revision in range(asked + 1, base + written + 1)
        ]
    else:
        with pytest.raises(TandemError) as caught:
            log.check(asked)
        assert caught.value.reason is Reason.REVISION_COMPACTED
        assert caught.value.metadata["oldest_revision"] == str(oldest)


def test_a_change_holds_the_thing_before_and_after() -> None:
    log = filled(1)
    log.put("a", 2)
    log.remove("a")
    assert [log.change(revision) for revision in (1, 2, 3)] == [Change(None, 1), Change(1, 2), Change(2, None)]


def test_a_revision_of_something_else_is_a_revision_without_a_change() -> None:
    log = filled(1)
    log.pass_over()
    assert (log.revision, log.change(2), log.current()) == (2, None, (1,))


def test_what_is_gone_is_not_in_the_table() -> None:
    log = filled(1)
    log.put("b", 7)
    log.remove("a")
    assert (log.current(), log.get("a"), log.get("b"), len(log)) == ((7,), None, 7, 1)


def test_removing_what_is_not_there_is_a_fault_and_no_revision() -> None:
    log = filled(1)
    with pytest.raises(KeyError):
        log.remove("b")
    assert log.revision == 1


def test_compaction_drops_changes_and_keeps_the_table() -> None:
    log = filled(5)
    log.compact(3)
    assert (log.oldest_revision, log.change(3), log.change(4), log.current()) == (3, None, Change(3, 4), (5,))


def test_compaction_goes_neither_back_nor_past_the_newest() -> None:
    log = filled(5)
    log.compact(9)
    log.compact(2)
    assert (log.oldest_revision, log.revision) == (5, 5)


def test_a_bell_rings_once_per_revision_until_it_is_taken_away() -> None:
    log, rings = filled(0), []
    end = log.subscribe(lambda: rings.append(log.revision))
    log.put("a", 1)
    log.pass_over()
    log.remove("a")
    end()
    log.pass_over()
    assert rings == [1, 2, 3]


def test_revisions_of_two_lives_do_not_meet() -> None:
    earlier = filled(5_000, revision=first_revision(1_763_790_000.0))
    later = filled(0, revision=first_revision(1_763_790_000.5))
    assert earlier.revision < later.oldest_revision < 2**53
    with pytest.raises(TandemError, match="REVISION_COMPACTED"):
        later.check(earlier.revision)

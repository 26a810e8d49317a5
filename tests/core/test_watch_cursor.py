"""What a reader is told next, and in which order."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tandem_router.core.watch_cursor import SCAN_MOST, WatchCursor
from tandem_router.core.watch_log import WatchLog
from tandem_router.errors import Reason, TandemError

Log = WatchLog[str, int]


def log_of(*things: int) -> Log:
    log: Log = WatchLog(capacity=1_000)
    for thing in things:
        log.put(str(thing), thing)
    return log


def told(cursor: WatchCursor[str, int]) -> list[tuple[str, int, int | None]]:
    found = []
    while cursor.has_more:
        event = cursor.next()
        if event is not None:
            found.append((event.type.value, event.revision, event.thing))
    return found


def everything(_: int) -> bool:
    return True


def even(thing: int) -> bool:
    return thing % 2 == 0


def test_a_snapshot_has_its_own_revision_and_ends_with_synced() -> None:
    assert told(WatchCursor(log_of(5, 6), everything)) == [
        ("SNAPSHOT", 2, 5), ("SNAPSHOT", 2, 6), ("SYNCED", 2, None),
    ]  # fmt: skip


def test_an_empty_table_is_synced_at_once() -> None:
    assert told(WatchCursor(log_of(), everything)) == [("SYNCED", 0, None)]


def test_what_changes_while_the_snapshot_is_read_comes_after_synced() -> None:
    log = log_of(5, 6)
    cursor = WatchCursor(log, everything)
    first = cursor.next()
    log.put("6", 8)
    log.remove("5")
    assert first is not None
    assert told(cursor) == [
        ("SNAPSHOT", 2, 6), ("SYNCED", 2, None), ("UPDATED", 3, 8), ("REMOVED", 4, 5),
    ]  # fmt: skip


def test_a_resumed_reader_gets_what_it_missed_and_then_synced() -> None:
    log = log_of(5, 6, 7)
    assert told(WatchCursor(log, everything, 1)) == [("ADDED", 2, 6), ("ADDED", 3, 7), ("SYNCED", 3, None)]


def test_a_reader_that_missed_nothing_is_synced_at_once() -> None:
    assert told(WatchCursor(log_of(5), everything, 1)) == [("SYNCED", 1, None)]


def test_what_comes_after_a_resume_comes_after_synced() -> None:
    log = log_of(5)
    cursor = WatchCursor(log, everything, 0)
    log.put("6", 6)
    assert told(cursor) == [("ADDED", 1, 5), ("SYNCED", 1, None), ("ADDED", 2, 6)]


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (2, 4, ("UPDATED", 2, 4)),
        (2, 3, ("REMOVED", 2, 3)),
        (3, 4, ("ADDED", 2, 4)),
        (3, 5, None),
        (2, None, ("REMOVED", 2, 2)),
        (3, None, None),
    ],
)
def test_a_change_is_told_by_whether_the_thing_matched_before_and_after(
    before: int, after: int | None, message: tuple[str, int, int] | None
) -> None:
    log = log_of()
    log.put("x", before)
    cursor = WatchCursor(log, even, 1)
    assert told(cursor) == [("SYNCED", 1, None)]
    if after is None:
        log.remove("x")
    else:
        log.put("x", after)
    assert told(cursor) == ([] if message is None else [message])


def test_the_position_passes_what_does_not_match() -> None:
    log = log_of(1, 3, 5)
    cursor = WatchCursor(log, even, 0)
    told(cursor)
    log.pass_over()
    told(cursor)
    assert (cursor.position, cursor.backlog) == (4, 0)


def test_one_call_looks_at_a_bounded_number_of_things() -> None:
    looked: list[int] = []

    def nothing(thing: int) -> bool:
        looked.append(thing)
        return False

    cursor = WatchCursor(log_of(*range(3 * SCAN_MOST)), nothing)
    assert (cursor.next(), len(looked), cursor.has_more) == (None, SCAN_MOST, True)


@pytest.mark.parametrize("revision", [1, 99])
def test_a_revision_that_is_not_kept_is_refused_before_anything_is_told(revision: int) -> None:
    log = log_of(1, 2, 3)
    log.compact(2)
    with pytest.raises(TandemError) as caught:
        WatchCursor(log, everything, revision)
    assert (caught.value.reason, caught.value.metadata["oldest_revision"]) == (Reason.REVISION_COMPACTED, "2")


def overtaken(start: Callable[[Log], WatchCursor[str, int]]) -> TandemError:
    log = log_of(1)
    cursor = start(log)
    for thing in range(10):
        log.put("x", thing)
    log.compact(8)
    with pytest.raises(TandemError) as caught:
        cursor.next()
    return caught.value


def test_a_reader_that_compaction_overtakes_is_slow_and_may_resume() -> None:
    def synced(log: Log) -> WatchCursor[str, int]:
        cursor = WatchCursor(log, everything)
        told(cursor)
        return cursor

    error = overtaken(synced)
    assert (error.reason, error.metadata) == (Reason.SLOW_CLIENT, {"behind": "10"})
    assert error.sentence.endswith("resume from the last revision seen")


def test_a_resumed_reader_may_resume_also_before_synced() -> None:
    error = overtaken(lambda log: WatchCursor(log, everything, 1))
    assert error.sentence.endswith("resume from the last revision seen")


def test_a_reader_in_its_snapshot_must_start_again() -> None:
    error = overtaken(lambda log: WatchCursor(log, everything))
    assert (error.reason, error.sentence.endswith("start again")) == (Reason.SLOW_CLIENT, True)

"""Following KV events: gaps are asked for once, losses clear, and what is applied is never out of order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem_router.core.kv_cursor import Apply, Clear, Directive, KvCursor, Subscribe
from tandem_router.model.kv_events import KvBatch, KvCleared

ANEW = (Clear(), Subscribe(0))


def batch(sequence: int, *, rank: int | None = None, is_load: bool = False, is_snapshot: bool = False) -> KvBatch:
    return KvBatch(sequence, () if is_load else (KvCleared(),), rank, is_snapshot)


def at(*sequences: int) -> KvCursor:
    """A cursor that has applied these batches."""
    cursor = KvCursor()
    assert cursor.begin() == (Subscribe(0),)
    for sequence in sequences:
        assert cursor.batch(batch(sequence)) == (Apply(batch(sequence)),)
    return cursor


def test_first_batch_may_have_any_number() -> None:
    assert at(41, 42).last == 42


def test_load_alone_that_repeats_the_last_number_is_nothing() -> None:
    assert at(7).batch(batch(7, is_load=True)) == ()


def test_load_alone_that_is_ahead_tells_of_a_gap() -> None:
    assert at(7).batch(batch(9, is_load=True)) == (Subscribe(8),)


def test_gap_is_asked_for_where_it_begins() -> None:
    assert at(7).batch(batch(9)) == (Subscribe(8),)


def test_resumed_stream_without_the_gap_goes_on() -> None:
    cursor = at(7)
    cursor.batch(batch(9))
    assert [cursor.batch(batch(number)) for number in (8, 9)] == [(Apply(batch(8)),), (Apply(batch(9)),)]


def test_gap_after_resuming_clears() -> None:
    cursor = at(7)
    cursor.batch(batch(9))
    assert cursor.batch(batch(9)) == ANEW


@pytest.mark.parametrize("number", [7, 3, 1])
def test_number_that_goes_back_is_another_publisher(number: int) -> None:
    assert at(7).batch(batch(number)) == ANEW


def test_out_of_range_and_data_loss_clear() -> None:
    assert at(7).lost() == ANEW


def test_loss_before_anything_was_known_clears_nothing() -> None:
    assert at().lost() == (Subscribe(0),)


def test_broken_stream_is_resumed_behind_the_last_batch() -> None:
    assert at(7, 8).broken() == (Subscribe(9),)


def test_broken_stream_of_several_ranks_cannot_be_resumed() -> None:
    cursor = at()
    cursor.batch(batch(5, rank=0))
    cursor.batch(batch(90, rank=1))
    assert cursor.broken() == ANEW


def test_ranks_count_by_themselves() -> None:
    cursor = at()
    taken = [cursor.batch(batch(number, rank=rank)) for rank, number in ((0, 5), (1, 90), (0, 6), (1, 91))]
    assert all(isinstance(directives[0], Apply) for directives in taken)


def test_snapshot_is_applied_whatever_its_number() -> None:
    assert at(7).batch(batch(3, is_snapshot=True)) == (Apply(batch(3, is_snapshot=True)),)


INPUTS = st.lists(
    st.one_of(
        st.builds(batch, st.integers(1, 12), rank=st.sampled_from([None, None, 0, 1]), is_load=st.booleans()),
        st.sampled_from(["broken", "lost"]),
    ),
    max_size=40,
)


@given(INPUTS)
def test_what_was_applied_since_the_last_clear_has_no_gap(inputs: list[KvBatch | str]) -> None:
    cursor = KvCursor()
    applied: dict[int | None, list[int]] = {}

    def obey(directives: tuple[Directive, ...]) -> None:
        assert len([one for one in directives if isinstance(one, Subscribe)]) <= 1
        for directive in directives:
            if isinstance(directive, Clear):
                applied.clear()
            elif isinstance(directive, Apply):
                applied.setdefault(directive.batch.dp_rank, []).append(directive.batch.sequence)
            else:
                # Only what is right behind the last batch applied, or everything anew from nothing.
                assert directive.resume_at == 0 or directive.resume_at - 1 == cursor.last
                assert directive.resume_at or not applied

    obey(cursor.begin())
    for one in inputs:
        obey(cursor.batch(one) if isinstance(one, KvBatch) else getattr(cursor, one)())
        for numbers in applied.values():
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


@given(st.lists(st.sampled_from(["next", "drop", "broken", "forget"]), max_size=60))
def test_an_engine_that_keeps_what_it_sent_is_followed_to_its_end(story: list[str]) -> None:
    """Batches that get lost on the way are fetched; after "forget" the engine cannot, and the index begins anew."""
    cursor, sent, oldest, known = KvCursor(), 0, 1, set[int]()
    queue: list[int] = []

    def obey(directives: tuple[Directive, ...]) -> None:
        nonlocal queue
        for directive in directives:
            if isinstance(directive, Clear):
                known.clear()
            elif isinstance(directive, Apply):
                known.add(directive.batch.sequence)
            elif directive.resume_at and directive.resume_at < oldest:
                obey(cursor.lost())
            elif directive.resume_at:
                queue = list(range(directive.resume_at, sent + 1))
            else:
                queue = []

    obey(cursor.begin())
    for what in [*story, "next", "next"]:
        if what == "broken":
            obey(cursor.broken())
        elif what == "forget":
            oldest = sent + 1
        else:
            sent += 1
            if what == "next":
                queue.append(sent)
        while queue:
            obey(cursor.batch(batch(queue.pop(0))))
    assert cursor.last in (sent, None)
    assert known == set(range(min(known, default=1), min(known, default=1) + len(known)))

"""The table of pairs: revisions of its own, and how a pair ends."""

from __future__ import annotations

from dataclasses import replace

from tandem_router.core.watch_pairs import PairTable
from tandem_router.model.ids import PairId, RankKey, WorkerId
from tandem_router.model.pairing import HandshakeKind, LegState, LegTimes, PairState, PairView

KEY = RankKey(WorkerId("w"), 1, 0)
RESERVED = LegState.RESERVED
VIEW = PairView(
    PairId("p"), "r", 1, HandshakeKind.RENDEZVOUS, PairState.RESERVED, KEY, RESERVED, KEY, RESERVED, 1030, 0.0
)
ALONE = replace(VIEW, kind=HandshakeKind.AGGREGATE, prefill=None, prefill_state=None, room=None)


def test_a_pair_carries_the_revision_of_its_last_change() -> None:
    table = PairTable(revision=100)
    table.show(VIEW, now_s=0.0)
    table.show(replace(VIEW, state=PairState.PREFILLING), now_s=0.0)
    assert [(pair.state, pair.revision) for pair in table.log.current()] == [(PairState.PREFILLING, 102)]


def test_a_pair_that_shows_nothing_new_makes_no_revision() -> None:
    table = PairTable()
    table.show(VIEW, now_s=0.0)
    table.show(VIEW, now_s=0.0)
    assert table.log.revision == 1


def test_a_pair_s_last_state_is_shown_before_it_is_gone() -> None:
    table = PairTable()
    table.show(VIEW, now_s=0.0)
    table.end(replace(VIEW, state=PairState.FAILED), now_s=0.0)
    shown, gone = table.log.change(2), table.log.change(3)
    assert shown is not None
    assert shown.after is not None
    assert gone is not None
    assert (shown.after.state, gone.before, gone.after, len(table.log)) == (PairState.FAILED, shown.after, None, 0)


def test_aggregated_requests_are_no_pairs() -> None:
    table = PairTable()
    table.show(ALONE, now_s=0.0)
    table.end(ALONE, now_s=0.0)
    assert (table.log.revision, table.log.current()) == (0, ())


def test_times_are_those_of_the_changes_of_state() -> None:
    table = PairTable()
    views = [
        VIEW,
        replace(VIEW, prefill_state=LegState.SENT, decode_state=LegState.SENT),
        replace(VIEW, prefill_state=LegState.DONE, decode_state=LegState.SENT),
        replace(VIEW, prefill_state=LegState.DONE, decode_state=LegState.RUNNING),
    ]
    for now_s, view in enumerate(views):
        table.show(view, now_s=float(now_s))
    table.end(replace(VIEW, prefill_state=LegState.DONE, decode_state=LegState.DONE), now_s=9.0)
    last = table.log.change(5)
    assert last is not None
    assert last.after is not None
    assert last.after.prefill_times == LegTimes(1.0, None, 2.0)
    assert last.after.decode_times == LegTimes(1.0, 3.0, 9.0)
    assert (last.after.committed_at_s, last.after.ended_at_s) == (3.0, 9.0)


def test_another_decode_worker_has_times_of_its_own() -> None:
    table = PairTable()
    table.show(replace(VIEW, decode_leg_id="one", decode_state=LegState.SENT), now_s=1.0)
    table.show(replace(VIEW, decode_leg_id="two", decode_state=LegState.SENT), now_s=2.0)
    assert table.log.current()[0].decode_times == LegTimes(2.0)


def test_a_leg_that_was_never_sent_has_a_close_only() -> None:
    table = PairTable()
    table.show(VIEW, now_s=1.0)
    table.show(replace(VIEW, decode_state=LegState.CLOSED), now_s=2.0)
    assert table.log.current()[0].decode_times == LegTimes(None, None, 2.0)

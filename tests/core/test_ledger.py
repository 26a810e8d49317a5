"""Open legs are rows: opened once, closed once, counted under one life of a worker."""

from __future__ import annotations

import pytest

from tandem_router.core.ledger import LegLedger, LegRow
from tandem_router.model.ids import RankKey, WorkerId
from tandem_router.model.pairing import LegRole

WORKER = WorkerId("00000000-0000-4000-8000-000000000001")


def row(leg_id: str, epoch: int = 1, dp_rank: int = 0) -> LegRow:
    return LegRow(leg_id, RankKey(WORKER, epoch, dp_rank), LegRole.DECODE, 7, 0.0)


def test_in_flight_is_the_number_of_open_rows_of_that_life_and_rank() -> None:
    ledger = LegLedger()
    for leg_id, epoch, rank in (("a", 1, 0), ("b", 1, 1), ("c", 2, 0), ("d", 2, 0)):
        ledger.open(row(leg_id, epoch, rank))
    assert ledger.in_flight(RankKey(WORKER, 1, 0)) == 1
    assert ledger.in_flight(RankKey(WORKER, 2, 0)) == 2
    assert ledger.in_flight_of_worker(WORKER) == 4


def test_a_leg_opens_once_and_closes_once() -> None:
    ledger = LegLedger()
    ledger.open(row("a"))
    with pytest.raises(ValueError, match="already open"):
        ledger.open(row("a"))
    ledger.close("a")
    with pytest.raises(KeyError):
        ledger.close("a")


def test_an_idle_ledger_is_empty_and_remembers_totals() -> None:
    ledger = LegLedger()
    ledger.open(row("a"))
    ledger.close("a")
    statistics = ledger.statistics()
    assert (statistics.open, statistics.opened_total, statistics.closed_total) == (0, 1, 1)
    assert statistics.by_rank == {}
    assert ledger.rows() == ()


OTHER = WorkerId("00000000-0000-4000-8000-000000000002")


def test_a_fetch_is_noted_under_its_source_until_it_has_ended_and_is_no_load_there() -> None:
    ledger = LegLedger()
    ledger.open(row("a"))
    ledger.begin_fetch("a", OTHER)
    assert (ledger.fetching_from(OTHER), ledger.in_flight_of_worker(OTHER)) == (1, 0)
    assert ledger.fetching_from(WORKER) == 0
    ledger.end_fetch("a")
    ledger.end_fetch("a")
    assert ledger.fetching_from(OTHER) == 0


def test_a_leg_that_closes_fetches_no_more_and_one_that_is_not_open_never_does() -> None:
    ledger = LegLedger()
    ledger.open(row("a"))
    ledger.begin_fetch("a", OTHER)
    ledger.close("a")
    assert ledger.fetching_from(OTHER) == 0
    with pytest.raises(KeyError):
        ledger.begin_fetch("a", OTHER)


def test_a_listener_is_told_of_both_workers_when_a_fetching_leg_closes_and_finds_less_there() -> None:
    ledger = LegLedger()
    told: list[tuple[WorkerId, int, int]] = []
    ledger.on_less(lambda it: told.append((it, ledger.in_flight_of_worker(it), ledger.fetching_from(it))))
    ledger.open(row("a"))
    ledger.begin_fetch("a", OTHER)
    ledger.close("a")
    assert told == [(WORKER, 0, 0), (OTHER, 0, 0)]

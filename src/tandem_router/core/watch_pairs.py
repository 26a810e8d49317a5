"""The pairs of this router, by revisions of their own: what ListPairs reads and WatchPairs follows.

A pair says what it is; the table, which is shown every change, says when it came to be so.
"""

from __future__ import annotations

from dataclasses import replace

from tandem_router.core.leg import OPEN_STATES
from tandem_router.core.watch_log import WatchLog
from tandem_router.model.ids import PairId
from tandem_router.model.pairing import LegState, LegTimes, PairView

__all__ = ["PairTable"]

_SPOKEN = frozenset({LegState.RUNNING, LegState.DONE})


class PairTable:
    """Pairs with an open leg, oldest first. Aggregated requests are no pairs and are not in it."""

    def __init__(self, *, revision: int = 0, capacity: int = 65_536) -> None:
        """revision: before the first change (`first_revision`). capacity: revisions kept."""
        self.log: WatchLog[PairId, PairView] = WatchLog(revision=revision, capacity=capacity)

    def show(self, view: PairView, *, now_s: float) -> None:
        """A pair came into being, or may have changed; one that shows nothing new makes no revision.

        view: without times and revision. now_s: wall clock, seconds since the epoch.
        """
        if view.prefill is not None:
            self._show(view, now_s)

    def end(self, view: PairView, *, now_s: float) -> None:
        """A pair is over; its last state is shown first, so that no watch misses how it ended."""
        if view.prefill is not None:
            self._show(replace(view, ended_at_s=now_s), now_s)
            self.log.remove(view.id)

    def _show(self, view: PairView, now_s: float) -> None:
        known = self.log.get(view.id)
        timed = _timed(view, known, now_s)
        if known is None or replace(timed, revision=known.revision) != known:
            self.log.put(view.id, replace(timed, revision=self.log.revision + 1))

    def __repr__(self) -> str:
        return f"<PairTable {self.log!r}>"


def _timed(view: PairView, known: PairView | None, now_s: float) -> PairView:
    prefill, decode, committed_at_s = LegTimes(), LegTimes(), None
    if known is not None:
        prefill, committed_at_s = known.prefill_times, known.committed_at_s
        if known.decode_leg_id == view.decode_leg_id:  # else another decode worker has taken the handle
            decode = known.decode_times
    if committed_at_s is None and view.decode_state in _SPOKEN:
        committed_at_s = now_s
    return replace(
        view,
        prefill_times=_leg_times(prefill, view.prefill_state, now_s),
        decode_times=_leg_times(decode, view.decode_state, now_s),
        committed_at_s=committed_at_s,
    )


def _leg_times(times: LegTimes, state: LegState | None, now_s: float) -> LegTimes:
    if state is None or state is LegState.RESERVED:
        return times
    if times.sent_at_s is None and state in (LegState.SENT, LegState.RUNNING):
        times = replace(times, sent_at_s=now_s)
    if times.first_item_at_s is None and state is LegState.RUNNING:
        times = replace(times, first_item_at_s=now_s)
    if times.closed_at_s is None and state not in OPEN_STATES:
        times = replace(times, closed_at_s=now_s)
    return times

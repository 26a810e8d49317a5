"""Scorers: pure opinions in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence

from tandem_router.policies.contract import Candidate, Query

__all__ = ["LeastInFlight"]


class LeastInFlight:
    """1 for the slot where one more leg costs least, 0 where it costs most, linear between; all 1 when equal.

    One more leg costs (open legs + 1) x the worker's cost: a worker of cost 2 gets half the legs of one of cost 1.
    """

    name = "least_in_flight"

    def score(self, query: Query, candidates: Sequence[Candidate]) -> Sequence[float]:
        """Scores in the order of the candidates."""
        loads = [(candidate.in_flight + 1) * candidate.worker.cost for candidate in candidates]
        low, high = min(loads), max(loads)
        if low == high:
            return [1.0] * len(loads)
        return [(high - load) / (high - low) for load in loads]

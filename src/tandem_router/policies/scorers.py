"""Scorers: pure opinions in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence

from tandem_router.policies.contract import Candidate, Query

__all__ = ["LeastInFlight"]


class LeastInFlight:
    """1 for the slot with the fewest open legs, 0 for the one with the most, linear between; all 1 when equal."""

    name = "least_in_flight"

    def score(self, query: Query, candidates: Sequence[Candidate]) -> Sequence[float]:
        """Scores in the order of the candidates."""
        loads = [candidate.in_flight for candidate in candidates]
        low, high = min(loads), max(loads)
        if low == high:
            return [1.0] * len(loads)
        return [(high - load) / (high - low) for load in loads]

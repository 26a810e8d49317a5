"""The Generate calls that are open, by the request_id their client gave: what Abort finds."""

from __future__ import annotations

from tandem_engine.services.legs import Leg

__all__ = ["Call", "Calls"]


class Call:
    """One open Generate call. `request_id` is the client's and need not be unique; the engine's own id is."""

    def __init__(self, request_id: str, leg: Leg) -> None:
        self.request_id = request_id
        self.leg = leg
        self.is_aborted = False
        """True once an Abort rpc named this call."""
        self.is_shadowed = False
        """True once a later call came with the same request_id."""


class Calls:
    def __init__(self) -> None:
        self._open: list[Call] = []

    def add(self, call: Call) -> None:
        for other in self._open:
            if other.request_id == call.request_id:
                other.is_shadowed = True
        self._open.append(call)

    def remove(self, call: Call) -> None:
        if call in self._open:
            self._open.remove(call)

    def abort(self, request_id: str, reason: str, *, by_prefix: bool) -> int:
        """Stops every call of this id, or of ids that begin with it; returns how many."""
        found = [
            call
            for call in self._open
            if call.request_id == request_id or (by_prefix and call.request_id.startswith(request_id))
        ]
        for call in found:
            call.is_aborted = True
            call.leg.stop(reason)
        return len(found)

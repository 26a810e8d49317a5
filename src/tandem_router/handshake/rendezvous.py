"""Rendezvous: both legs are written at once with the same bootstrap host, port and room (SGLang's disaggregation).

`abort_in_transfer` is DEFER: aborting a decode while pages are being written to it lets the writer go on into blocks
that already belong to others (sglang #30233, #34208; smg #2114 waits for the first item or 30 s for the same reason).
"""

from __future__ import annotations

from dataclasses import replace

from tandem_router.model.pairing import AbortInTransfer, HandshakeKind, LegRole, Rendezvous
from tandem_router.model.request import LegRequest
from tandem_router.model.worker import Worker

__all__ = ["RendezvousHandshake"]


class RendezvousHandshake:
    """Both legs meet at a room of the prefill worker's bootstrap server."""

    kind = HandshakeKind.RENDEZVOUS
    abort_in_transfer = AbortInTransfer.DEFER
    needs_room = True

    def prefill_leg(self, leg: LegRequest, *, prefill: Worker, decode: Worker, room: int | None) -> LegRequest:
        """The prompt and the sampling unchanged: this connector's prefill stops by itself after its first token."""
        return replace(leg, role=LegRole.PREFILL, handoff=_meeting(prefill, room), is_streaming=False)

    def decode_leg(
        self, leg: LegRequest, *, prefill: Worker, decode: Worker, room: int | None, transfer_params: str | None
    ) -> LegRequest:
        """The same prompt at the same room; the prompt's logprobs are prefill's."""
        return replace(leg, role=LegRole.DECODE, handoff=_meeting(prefill, room), prompt_logprobs=False)


def _meeting(prefill: Worker, room: int | None) -> Rendezvous:
    if room is None or prefill.facts is None or prefill.facts.bootstrap is None:
        raise ValueError("a rendezvous needs a room and a prefill worker whose bootstrap endpoint is known")
    return Rendezvous(prefill.facts.bootstrap.host, prefill.facts.bootstrap.port, room)

"""Rendezvous: both legs are written at once with the same bootstrap host, port and room (SGLang, TokenSpeed).

`abort_in_transfer` is DEFER: aborting a decode while pages are being written to it lets the writer go on into blocks
that already belong to others (sglang #30233, #34208; smg #2114 waits for the first item or 30 s for the same reason).

With data parallelism both legs must reach the rank that was chosen for prefill, and engines find it in two ways. SGLang
goes by the room: its servicer (0.14.1) never hands `data_parallel_rank` to the scheduler, so only under
`follow_bootstrap_room` is a request placed on rank `room % dp_size`; under any other method its two halves wait for
each other on different ranks. TokenSpeed pins by `data_parallel_rank`, and its engines that are too old for the pin
"dispatch by the room residue instead" (tokenspeed_scheduler.proto): as rooms are minted congruent with the rank, both
name the same rank, so no method has to be stated.
"""

from __future__ import annotations

from dataclasses import replace

from tandem_router.handshake.contract import Link
from tandem_router.model.pairing import AbortInTransfer, HandshakeKind, LegRole, Rendezvous
from tandem_router.model.request import LegRequest
from tandem_router.model.spec import RuntimeType
from tandem_router.model.worker import WorkerFacts

__all__ = ["RendezvousHandshake"]

_FOLLOWS_ROOM = "follow_bootstrap_room"
_PINS_RANK = frozenset({RuntimeType.TOKENSPEED})
"""Protocols whose rank field, or else the room, decides by itself where a request of a pair runs."""


class RendezvousHandshake:
    """Both legs meet at a room of the prefill worker's bootstrap server."""

    kind = HandshakeKind.RENDEZVOUS
    abort_in_transfer = AbortInTransfer.DEFER
    needs_room = True
    needs_transfer_id = False
    needs_bootstrap = True
    returns_params = False
    decode_outwaits_prefill = True
    """SGLang's own bootstrap timeout is 300 s; that prefill is gone shows in its leg, which is open as long."""
    handle_lease_s = None

    def shortcoming(self, prefill: WorkerFacts) -> str | None:
        """A bootstrap endpoint, and with several ranks a way to the rank that was chosen."""
        if prefill.bootstrap is None:
            return "the prefill worker's bootstrap endpoint is not known; state bootstrap_host and bootstrap_port"
        is_placed = prefill.load_balance_method == _FOLLOWS_ROOM or prefill.runtime_type in _PINS_RANK
        if prefill.dp_size > 1 and not is_placed:
            return (
                "a prefill worker with dp_size > 1 must place requests by room; start it with load_balance_method "
                f"{_FOLLOWS_ROOM} (prefill has {prefill.load_balance_method})"
            )
        return None

    def prefill_leg(self, leg: LegRequest, link: Link) -> LegRequest:
        """The prompt and the sampling unchanged: this connector's prefill stops by itself after its first token."""
        return replace(leg, role=LegRole.PREFILL, handoff=_meeting(link), is_streaming=False)

    def decode_leg(self, leg: LegRequest, link: Link) -> LegRequest:
        """The same prompt at the same room; the prompt's logprobs are prefill's."""
        return replace(leg, role=LegRole.DECODE, handoff=_meeting(link), prompt_logprobs=False)


def _meeting(link: Link) -> Rendezvous:
    facts = link.prefill.facts
    if link.room is None or facts is None or facts.bootstrap is None:
        raise ValueError("a rendezvous needs a room and a prefill worker whose bootstrap endpoint is known")
    return Rendezvous(facts.bootstrap.host, facts.bootstrap.port, link.room)

"""Handoff by relayed parameters: prefill runs first and returns kv_transfer_params, decode gets them verbatim.

With NIXL, decode pulls: it owns both the blocks and the read, and can stop the read before it frees the blocks, so
aborting it is declared SAFE (DESIGN 4.2); the reference engine is built that way, a real NIXL has not been tried here.
Of a connector that is not known nothing can be declared, so it gets DEFER. The parameters are single use.
"""

from __future__ import annotations

from dataclasses import replace

from tandem_router.handshake.contract import prefill_sampling
from tandem_router.model.pairing import AbortInTransfer, HandshakeKind, LegRole, TransferParams
from tandem_router.model.request import LegRequest
from tandem_router.model.worker import Worker

__all__ = ["RelayedHandshake"]


class RelayedHandshake:
    """Prefill finishes, then decode gets what it returned."""

    kind = HandshakeKind.HANDOFF
    needs_room = False

    def __init__(self, abort_in_transfer: AbortInTransfer) -> None:
        self.abort_in_transfer = abort_in_transfer

    def prefill_leg(self, leg: LegRequest, *, prefill: Worker, decode: Worker, room: int | None) -> LegRequest:
        """A clone of the request that computes the prompt and one token, and keeps its blocks."""
        return replace(
            leg,
            role=LegRole.PREFILL,
            handoff=None,
            is_streaming=False,
            sampling=prefill_sampling(leg.sampling),
            output_logprobs=False,
            top_logprobs=leg.top_logprobs if leg.prompt_logprobs else 0,
        )

    def decode_leg(
        self, leg: LegRequest, *, prefill: Worker, decode: Worker, room: int | None, transfer_params: str | None
    ) -> LegRequest:
        """The request as the client sent it, with the parameters verbatim; the prompt's logprobs are prefill's."""
        if transfer_params is None:
            raise ValueError("a handoff's decode leg needs the parameters that prefill returned")
        handoff = TransferParams(transfer_params)
        return replace(leg, role=LegRole.DECODE, handoff=handoff, prompt_logprobs=False)

"""Handoff by relayed parameters: prefill runs first and returns kv_transfer_params, decode gets them verbatim.

With NIXL, decode pulls: it owns both the blocks and the read, and can stop the read before it frees the blocks, so
aborting it is declared SAFE (DESIGN 4.2); the reference engine is built that way. A decode whose prefill cannot be
reached gives up by itself after 5 s (vLLM 0.32, measured), and a prefill holds blocks that nobody fetches for 30 s.
The parameters are single use, and a NIXL prefill that returns none has failed: decode would compute the prompt again
and nobody would hear of it.

Of a connector that is not known nothing can be declared, so it gets DEFER, and its decode is not trusted to give up.
It is passed through: decode gets what prefill returned, and nothing where prefill returned nothing. That is how
connectors work whose workers meet in a shared store (of vLLM 0.32 Mooncake's store, HF3FS, the example connector that
was called SharedStorage; LMCache and FlexKV too): their prefill puts blocks away under hashes of the prompt, and their
decode looks every prompt up, so neither leg is told anything. What decode does not find it computes, and only the
engine's own counters show it. The first three read no parameters, return none and need nothing of the prefill process
once it has answered, so their decode outwaits nobody.
"""

from __future__ import annotations

from dataclasses import replace

from tandem_router.handshake.contract import Link, spare_token_leg
from tandem_router.model.pairing import AbortInTransfer, HandshakeKind, LegRole, TransferParams
from tandem_router.model.request import LegRequest
from tandem_router.model.worker import WorkerFacts

__all__ = ["RelayedHandshake"]


class RelayedHandshake:
    """Prefill finishes, then decode gets what it returned, if it returned anything."""

    kind = HandshakeKind.HANDOFF
    needs_room = False
    needs_transfer_id = False
    needs_bootstrap = False
    handle_lease_s = None

    def __init__(
        self, abort_in_transfer: AbortInTransfer, *, decode_outwaits_prefill: bool, returns_params: bool = True
    ) -> None:
        """returns_params: False = it may return none, and decode is then sent none."""
        self.abort_in_transfer = abort_in_transfer
        self.decode_outwaits_prefill = decode_outwaits_prefill
        self.returns_params = returns_params

    def shortcoming(self, prefill: WorkerFacts) -> str | None:
        """Nothing: what decode needs to know comes back from prefill."""
        return None

    def prefill_leg(self, leg: LegRequest, link: Link) -> LegRequest:
        """One token, and the blocks kept; the dialect asks for the parameters in its protocol's own words."""
        return replace(spare_token_leg(leg), role=LegRole.PREFILL, handoff=None)

    def decode_leg(self, leg: LegRequest, link: Link) -> LegRequest:
        """The request as the client sent it, with the parameters verbatim; the prompt's logprobs are prefill's."""
        if link.returned is None and self.returns_params:
            raise ValueError("a handoff's decode leg needs the parameters that prefill returned")
        handoff = None if link.returned is None else TransferParams(link.returned)
        return replace(leg, role=LegRole.DECODE, handoff=handoff, prompt_logprobs=False)

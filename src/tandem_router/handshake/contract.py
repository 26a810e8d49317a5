"""What every handshake answers: when the legs are written, what each carries, and how a leg may be stopped."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from tandem_router.model.pairing import AbortInTransfer, HandshakeKind
from tandem_router.model.request import LegRequest, Sampling
from tandem_router.model.worker import Worker

__all__ = ["Handshake", "prefill_sampling"]


class Handshake(Protocol):
    """One way of pairing."""

    @property
    def kind(self) -> HandshakeKind:
        """RENDEZVOUS or HANDOFF."""

    @property
    def abort_in_transfer(self) -> AbortInTransfer:
        """What aborting a decode leg does while its pages are on their way; with evidence in the body's docstring."""

    @property
    def needs_room(self) -> bool:
        """Whether the legs meet at a bootstrap room, to be minted before either is written."""

    def prefill_leg(self, leg: LegRequest, *, prefill: Worker, decode: Worker, room: int | None) -> LegRequest:
        """The prefill leg of an attempt, from the request's common part."""

    def decode_leg(
        self, leg: LegRequest, *, prefill: Worker, decode: Worker, room: int | None, transfer_params: str | None
    ) -> LegRequest:
        """The decode leg; `transfer_params` is what prefill returned, verbatim (None in a rendezvous)."""


def prefill_sampling(sampling: Sampling) -> Sampling:
    """Sampling of a leg that exists for its KV cache: one token, and nothing that could end it earlier (smg 13.1-5)."""
    return replace(
        sampling,
        n=1,
        max_tokens=1,
        min_tokens=0 if sampling.min_tokens is not None else None,
        stop=(),
        stop_token_ids=(),
        ignore_eos=True,
        constraint=None,
    )

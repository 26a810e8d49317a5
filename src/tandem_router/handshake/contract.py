"""What every handshake answers: when the legs are written, what each carries, and how a leg may be stopped."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from tandem_router.model.pairing import AbortInTransfer, HandshakeKind
from tandem_router.model.request import LegRequest, Sampling
from tandem_router.model.worker import Worker, WorkerFacts

__all__ = ["Handshake", "Link", "prefill_sampling", "spare_token_leg"]


@dataclass(frozen=True, slots=True)
class Link:
    """What ties the two legs of one attempt; made by the runtime, which mints what the handshake says it needs."""

    prefill: Worker
    prefill_rank: int = 0
    room: int | None = None
    """Set where the handshake `needs_room`."""
    transfer_id: str | None = None
    """Set where the handshake `needs_transfer_id`; "xfer-" and a UUID, of this attempt alone."""
    returned: str | None = None
    """kv_transfer_params as prefill returned them; None until then, and where prefill returned none."""


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

    @property
    def needs_transfer_id(self) -> bool:
        """Whether the legs name their transfer by an id that is minted before either is written."""

    @property
    def needs_bootstrap(self) -> bool:
        """Whether decode knocks at a bootstrap endpoint of the prefill worker."""

    @property
    def returns_params(self) -> bool:
        """Whether prefill's end must carry kv_transfer_params: one without them is then a failed transfer."""

    @property
    def decode_outwaits_prefill(self) -> bool:
        """Whether a decode leg whose prefill worker is gone waits on and on instead of failing by itself soon."""

    @property
    def handle_lease_s(self) -> float | None:
        """How long prefill holds blocks that nobody fetches, in seconds; None = `settings.kv_handle_lease_s`."""

    def shortcoming(self, prefill: WorkerFacts) -> str | None:
        """What the prefill worker lacks for this handshake, as a sentence that says what to state; None = nothing."""

    def prefill_leg(self, leg: LegRequest, link: Link) -> LegRequest:
        """The prefill leg of an attempt, from the request's common part.

        Raises ValueError where the link lacks what the handshake needs: a fault of the caller.
        """

    def decode_leg(self, leg: LegRequest, link: Link) -> LegRequest:
        """The decode leg; raises ValueError as `prefill_leg` does."""


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


def spare_token_leg(leg: LegRequest) -> LegRequest:
    """A handoff's prefill: a clone of the request that computes the prompt and one token, which nobody reads.

    The prompt's log probabilities are asked of it, because decode does not compute the prompt.
    """
    return replace(
        leg,
        is_streaming=False,
        sampling=prefill_sampling(leg.sampling),
        output_logprobs=False,
        top_logprobs=leg.top_logprobs if leg.prompt_logprobs else 0,
    )

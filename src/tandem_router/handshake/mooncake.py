"""Mooncake (vLLM's MooncakeConnector): the router names the transfer, and decode finds prefill by its engine id.

Nothing comes back from prefill: both legs carry a `transfer_id` that the router minted, and decode asks the prefill
worker's bootstrap server (GET /query) which process the engine id is. The engine would take its legs in either order;
prefill goes first all the same, because a decode whose transfer never becomes ready waits for
VLLM_MOONCAKE_ABORT_REQUEST_TIMEOUT, 480 s, and keeps its blocks that long even when its request is cancelled (seen:
more than 45 s). For the same reason a decode is not sent, or is given up, once the prefill worker is gone.

`abort_in_transfer` is DEFER. It is the prefill process that writes, straight into the decode's memory and without
asking again (`_send_blocks` on its sender thread; vLLM 0.32): a decode that is stopped cannot stop the writer, so its
blocks stay taken until the transfer ends, and where prefill is lost until the engine's own timeout.

Blocks that nobody fetches are held for the same 480 s, from prefill's end. With data parallelism each rank is an engine
of its own, "<engine id>_dp<rank>": every engine core appends it when data_parallel_size > 1, which is after the id that
GetServerInfo reports was made.
"""

from __future__ import annotations

import json
from dataclasses import replace

from tandem_router.handshake.contract import Link, spare_token_leg
from tandem_router.model.pairing import AbortInTransfer, BootstrapEndpoint, HandshakeKind, LegRole, TransferParams
from tandem_router.model.request import LegRequest
from tandem_router.model.worker import WorkerFacts

__all__ = ["MooncakeHandshake"]


class MooncakeHandshake:
    """Prefill finishes, then decode fetches the transfer of the id that both were given."""

    kind = HandshakeKind.HANDOFF
    abort_in_transfer = AbortInTransfer.DEFER
    needs_room = False
    needs_transfer_id = True
    needs_bootstrap = True
    returns_params = False
    decode_outwaits_prefill = True
    handle_lease_s = 480.0
    """VLLM_MOONCAKE_ABORT_REQUEST_TIMEOUT's default."""

    def shortcoming(self, prefill: WorkerFacts) -> str | None:
        """The engine id and the bootstrap endpoint: without either, decode would look for prefill until it hangs."""
        if prefill.kv_engine_id is None:
            return "the prefill worker's engine id is not known; state kv_engine_id as its engine was started with"
        if prefill.bootstrap is None:
            return "the prefill worker's bootstrap endpoint is not known; state bootstrap_host and bootstrap_port"
        return None

    def prefill_leg(self, leg: LegRequest, link: Link) -> LegRequest:
        """One token, and the blocks kept under the transfer's id."""
        params = {"do_remote_decode": True, "do_remote_prefill": False, "transfer_id": _transfer_id(link)}
        return replace(spare_token_leg(leg), role=LegRole.PREFILL, handoff=_text(params))

    def decode_leg(self, leg: LegRequest, link: Link) -> LegRequest:
        """The request as the client sent it, and where its blocks are; the prompt's logprobs are prefill's."""
        engine_id, endpoint = _source(link)
        params = {
            "do_remote_decode": False,
            "do_remote_prefill": True,
            "transfer_id": _transfer_id(link),
            "remote_engine_id": engine_id,
            "remote_bootstrap_addr": _url(endpoint),
        }
        return replace(leg, role=LegRole.DECODE, handoff=_text(params), prompt_logprobs=False)


def _transfer_id(link: Link) -> str:
    if not link.transfer_id:
        raise ValueError("both legs of a Mooncake pair need the id of their transfer")
    return link.transfer_id


def _source(link: Link) -> tuple[str, BootstrapEndpoint]:
    facts = link.prefill.facts
    if facts is None or facts.kv_engine_id is None or facts.bootstrap is None:
        raise ValueError("a Mooncake pair needs a prefill worker whose engine id and bootstrap endpoint are known")
    engine_id = facts.kv_engine_id if facts.dp_size == 1 else f"{facts.kv_engine_id}_dp{link.prefill_rank}"
    return engine_id, facts.bootstrap


def _url(endpoint: BootstrapEndpoint) -> str:
    host = f"[{endpoint.host}]" if ":" in endpoint.host and not endpoint.host.startswith("[") else endpoint.host
    return f"http://{host}:{endpoint.port}"


def _text(params: dict[str, object]) -> TransferParams:
    """Without spaces and in the order given, as other routers write it."""
    return TransferParams(json.dumps(params, separators=(",", ":")))

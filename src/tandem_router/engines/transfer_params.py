"""kv_transfer_params: opaque JSON, looked into only to keep off the wire what kills or hangs an engine.

Seen with vLLM 0.32.0: a NIXL decode with `do_remote_prefill` and no `remote_block_ids` kills the engine; a Mooncake
decode without its three names computes the prompt again, and one whose prefill never comes hangs with its blocks.
Mooncake asserts that a producer is never asked to pull and a consumer never to produce. Read in its pull_scheduler.py:
a NIXL decode that is not told whom to ask for the blocks waits for them for good, and keeps its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from tandem_router.engines.guards import refuse_broken_leg
from tandem_router.errors import Reason, TandemError
from tandem_router.model.pairing import KvRole, TransferParams
from tandem_router.model.request import LegRequest
from tandem_router.model.worker import WorkerFacts

__all__ = ["ASK_FOR_TRANSFER_PARAMS", "decode_params", "prefill_params"]

ASK_FOR_TRANSFER_PARAMS = '{"do_remote_decode":true,"do_remote_prefill":false}'
"""What a prefill leg is sent when the handshake has nothing of its own to say (NIXL)."""
_MOONCAKE = "MooncakeConnector"
_MOONCAKE_NEEDS = ("transfer_id", "remote_engine_id", "remote_bootstrap_addr")
_NIXL = ("NixlConnector", "NixlPullConnector", None)
"""Connectors that pull by block ids: NIXL, and one that nobody has named."""
_NIXL_NEEDS = ("remote_engine_id", "remote_request_id", "remote_host", "remote_port")
"""Asked of connectors that are known to pull so; of one that nobody has named only the blocks."""
_ALWAYS_TOLD = (*_NIXL, "NixlPushConnector", _MOONCAKE)
"""Connectors whose decode computes the prompt again when it is told nothing; others may look it up in a store."""


def prefill_params(leg: LegRequest, facts: WorkerFacts | None) -> str:
    """What the prefill leg is sent, verbatim; raises INTERNAL_ERROR for params that would strand its blocks."""
    if not isinstance(leg.handoff, TransferParams):
        params: Mapping[str, Any] = {"do_remote_decode": True}
        text = ASK_FOR_TRANSFER_PARAMS
    else:
        text = leg.handoff.json
        params = _object(text, partial(refuse_broken_leg, leg))
    if params.get("do_remote_prefill"):
        raise refuse_broken_leg(leg, "a prefill leg is asked to pull")
    if _connector(facts) == _MOONCAKE and not _is_name(params.get("transfer_id")):
        raise refuse_broken_leg(leg, "Mooncake needs a transfer_id, or decode waits for what is never sent")
    if facts is not None and facts.kv_role is KvRole.CONSUMER:
        raise refuse_broken_leg(leg, "a kv_consumer is asked to produce")
    return text


def decode_params(leg: LegRequest, facts: WorkerFacts | None) -> str | None:
    """What the decode leg is sent, verbatim, or None where prefill returned nothing and its connector need not.

    Raises KV_TRANSFER_FAILED for what prefill returned and would kill or hang the engine: the prefill is at fault, and
    another may do better. INTERNAL_ERROR for a leg that only a fault of ours builds.
    """
    if leg.handoff is None and _connector(facts) not in _ALWAYS_TOLD:
        return None
    if not isinstance(leg.handoff, TransferParams):
        raise refuse_broken_leg(leg, "a decode leg of a handoff has no transfer params")
    text = leg.handoff.json
    unusable = partial(_unusable, leg)
    params = _object(text, unusable)
    if not params.get("do_remote_prefill"):
        return text
    if facts is not None and facts.kv_role is KvRole.PRODUCER:
        raise refuse_broken_leg(leg, "a kv_producer is asked to pull")
    connector = _connector(facts)
    if connector == _MOONCAKE or (connector is None and "transfer_id" in params):
        missing = [name for name in _MOONCAKE_NEEDS if not _is_name(params.get(name))]
        if missing:
            raise unusable(f"Mooncake cannot pull without {', '.join(missing)}")
    elif connector in _NIXL:
        if not _can_be_pulled(params.get("remote_block_ids")):
            raise unusable("do_remote_prefill without remote_block_ids kills the decode engine")
        missing = [name for name in _NIXL_NEEDS if connector is not None and params.get(name) in (None, "")]
        if missing:
            raise unusable(f"NIXL waits for blocks for good without {', '.join(missing)}")
    return text


def _connector(facts: WorkerFacts | None) -> str | None:
    return None if facts is None else facts.kv_connector


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _can_be_pulled(block_ids: object) -> bool:
    """Whether these are a prompt's blocks: at least one, since the block that a short prompt began is handed over too.

    Told of none, vLLM's scheduler asserts that nothing is to be fetched, and dies. They come in groups, of which one
    with a sliding window may be empty.
    """
    return isinstance(block_ids, list) and any(group != [] for group in block_ids)


def _unusable(leg: LegRequest, why: str) -> TandemError:
    return TandemError(Reason.KV_TRANSFER_FAILED, f"leg {leg.leg_id} was not sent with what prefill returned: {why}")


def _object(text: str, refusal: Callable[[str], TandemError]) -> Mapping[str, Any]:
    try:
        params = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise refusal(f"transfer params are not JSON: {error}") from None
    if not isinstance(params, dict):
        raise refusal("transfer params are not a JSON object")
    return params

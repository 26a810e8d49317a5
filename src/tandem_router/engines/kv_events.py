"""SubscribeKvEvents (`smg.grpc.common`), the one form in which engine protocols publish their KV events."""

from __future__ import annotations

from typing import Any

from smg_grpc_proto.generated import common_pb2

from tandem_router.engines.contract import KvEventsRpc, Rpc
from tandem_router.model.kv_events import KvBatch, KvBlock, KvCleared, KvEvent, KvRemoved, KvStored

__all__ = ["kv_events_rpc"]

_ON_DEVICE = (common_pb2.KV_CACHE_TIER_UNSPECIFIED, common_pb2.KV_CACHE_TIER_DEVICE)


def kv_events_rpc(service: str) -> KvEventsRpc:
    """The subscription of a service that has it. service: its full name."""
    return KvEventsRpc(Rpc(f"/{service}/SubscribeKvEvents", common_pb2.KvEventBatch), _request, _batch)


def _request(resume_at: int) -> common_pb2.SubscribeKvEventsRequest:
    return common_pb2.SubscribeKvEventsRequest(start_sequence_number=resume_at)


def _batch(message: Any) -> KvBatch | None:
    if message.HasField("load") and message.load.load_only:
        return None
    return KvBatch(
        sequence=message.sequence_number,
        events=tuple(found for event in message.events if (found := _event(event)) is not None),
        dp_rank=message.dp_rank if message.HasField("dp_rank") else None,
        is_snapshot=message.HasField("snapshot"),
    )


def _event(event: Any) -> KvEvent | None:
    which = event.WhichOneof("data")
    if which == "stored":
        return _stored(event.stored)
    if which == "removed":
        level = event.removed.cache_level if event.removed.HasField("cache_level") else 0
        return KvRemoved(tuple(event.removed.block_hashes), _is_on_device(event.removed, level))
    # Something newer than the protocol that we know is left out: nothing is known to have changed.
    return KvCleared() if which == "cleared" else None


def _stored(stored: Any) -> KvStored:
    level = max((block.cache_level for block in stored.blocks if block.HasField("cache_level")), default=0)
    return KvStored(
        blocks=tuple(KvBlock(block.block_hash, tuple(block.token_ids), block.block_size) for block in stored.blocks),
        parent_hash=stored.parent_block_hash if stored.HasField("parent_block_hash") else None,
        adapter=stored.lora_name if stored.HasField("lora_name") else None,
        cache_salt=stored.cache_salt if stored.HasField("cache_salt") else None,
        is_on_device=_is_on_device(stored, level),
    )


def _is_on_device(message: Any, level: int) -> bool:
    """By tier, else by the older `cache_level` (0 = device); blocks of a shared pool are on nobody's device."""
    if message.locality == common_pb2.KV_CACHE_LOCALITY_REMOTE:
        return False
    if message.HasField("tier"):
        return message.tier in _ON_DEVICE
    return level == 0

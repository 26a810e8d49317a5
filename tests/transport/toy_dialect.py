"""SGLang's dialect with an Embed, two operations and KV events of plain messages: what transport itself does shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import wrappers_pb2 as wrap
from scripted_server import SERVICE
from smg_grpc_proto.generated import common_pb2

from tandem_router.engines.contract import EmbedRpc, KvEventsRpc, OperationRpc, Rpc
from tandem_router.engines.sglang import SglangDialect
from tandem_router.errors import Reason
from tandem_router.model.adapters import LoadedAdapter
from tandem_router.model.embedding import EmbedLeg, Vector
from tandem_router.model.failure import EngineFailure
from tandem_router.model.kv_events import KvBatch
from tandem_router.model.operations import FlushCache, ListAdapters, Operated, Operation, StopProfile
from tandem_router.model.worker import WorkerFacts


def _flushed(answer: Any) -> Operated:
    if not answer.value:
        raise EngineFailure(Reason.ENGINE_ERROR, "the engine is not idle")
    return Operated(answer.value)


def _embed_request(leg: EmbedLeg, facts: WorkerFacts | None) -> wrap.StringValue:
    ToyDialect.seen_facts = facts
    return wrap.StringValue(value=leg.leg_id)


class ToyDialect(SglangDialect):
    """Embed and FlushCache answer a StringValue, ListAdapters a name; batches are counted in int64."""

    seen_facts: WorkerFacts | None = None
    """What the last Embed request was made with."""

    @property
    def embed(self) -> EmbedRpc | None:
        return EmbedRpc(
            Rpc(f"/{SERVICE}/Embed", wrap.StringValue),
            _embed_request,
            lambda answer: Vector((float(answer.value),), 1),
        )

    @property
    def operations(self) -> Mapping[type[Operation], OperationRpc]:
        def rpc(method: str) -> Rpc:
            return Rpc(f"/{SERVICE}/{method}", wrap.StringValue)

        def empty(_: Any) -> wrap.StringValue:
            return wrap.StringValue()

        return {
            FlushCache: OperationRpc(rpc("FlushCache"), empty, _flushed),
            StopProfile: OperationRpc(rpc("StopProfile"), empty, lambda answer: Operated(answer.value)),
            ListAdapters: OperationRpc(
                rpc("ListAdapters"), empty, lambda answer: Operated(adapters=(LoadedAdapter(answer.value),))
            ),
        }

    @property
    def kv_events(self) -> KvEventsRpc | None:
        return KvEventsRpc(
            Rpc(f"/{SERVICE}/SubscribeKvEvents", wrap.Int64Value),
            lambda resume_at: common_pb2.SubscribeKvEventsRequest(start_sequence_number=resume_at),
            lambda message: KvBatch(message.value, ()) if message.value >= 0 else None,
        )


class BareDialect(ToyDialect):
    """A protocol without any of them."""

    @property
    def embed(self) -> EmbedRpc | None:
        return None

    @property
    def operations(self) -> Mapping[type[Operation], OperationRpc]:
        return {}

    @property
    def kv_events(self) -> KvEventsRpc | None:
        return None

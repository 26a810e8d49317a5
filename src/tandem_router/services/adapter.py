"""AdapterService: loads, unloads and shows the adapters of engines. Served on the admin listener."""

from __future__ import annotations

import grpc

from tandem.v1 import adapter_service_pb2 as pb
from tandem.v1 import adapter_service_pb2_grpc
from tandem_router.ports import Clock
from tandem_router.services.operators import Adapters, deadline_of
from tandem_router.wire.adapter import adapter_name, adapter_pb, load_of
from tandem_router.wire.checks import present, text, worker_id
from tandem_router.wire.operation import outcomes_pb, selection_of
from tandem_router.wire.paging import page

__all__ = ["AdapterServicer"]

Context = grpc.aio.ServicerContext[object, object]


class AdapterServicer(adapter_service_pb2_grpc.AdapterServiceServicer):
    """Unpacks, has it done, packs."""

    def __init__(self, adapters: Adapters, clock: Clock) -> None:
        self._adapters = adapters
        self._clock = clock

    async def LoadAdapter(self, request: pb.LoadAdapterRequest, context: Context) -> pb.LoadAdapterResponse:
        """Load and wait."""
        load, selection = load_of(request), selection_of(request.workers)
        adapter, outcomes = await self._adapters.load(load, selection, deadline_of(context, self._clock))
        return pb.LoadAdapterResponse(adapter=adapter_pb(adapter), outcomes=outcomes_pb(outcomes))

    async def UnloadAdapter(self, request: pb.UnloadAdapterRequest, context: Context) -> pb.UnloadAdapterResponse:
        """Unload and wait."""
        name = adapter_name("name", request.name)
        selection = selection_of(request.workers) if present(request, "workers") else None
        outcomes = await self._adapters.unload(name, selection, deadline_of(context, self._clock))
        return pb.UnloadAdapterResponse(outcomes=outcomes_pb(outcomes))

    async def GetAdapter(self, request: pb.GetAdapterRequest, context: Context) -> pb.GetAdapterResponse:
        """One adapter and where it is."""
        found = await self._adapters.get(adapter_name("name", request.name))
        return pb.GetAdapterResponse(adapter=adapter_pb(found))

    async def ListAdapters(self, request: pb.ListAdaptersRequest, context: Context) -> pb.ListAdaptersResponse:
        """A page of what is loaded, by name."""
        model = text("model", request.model, most=256)
        of_worker = worker_id("worker_id", request.worker_id) if request.worker_id else None
        adapters = await self._adapters.list(model=model, worker_id=of_worker)
        chosen, token = page(
            adapters,
            lambda adapter: adapter.name,
            size=request.page_size,
            token=request.page_token,
            filters=pb.ListAdaptersRequest(model=request.model, worker_id=request.worker_id),
        )
        return pb.ListAdaptersResponse(adapters=[adapter_pb(one) for one in chosen], next_page_token=token)

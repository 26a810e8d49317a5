"""SGLang's LoRA rpcs: load from a folder of the engine's machine, unload, list; and the adapter that a request wants.

`lora_id` is the caller's and selects (GenerateRequest.lora_id), `lora_name` is for people; both are unique. SGLang's
servicer 0.14.1 answers the three rpcs with UNIMPLEMENTED; this is what the protocol file says they do.
"""

from __future__ import annotations

import grpc
from smg_grpc_proto.generated import sglang_scheduler_pb2 as pb

from tandem_engine.adapters import AdapterError
from tandem_engine.config import ModelFolderError
from tandem_engine.lora import Adapter
from tandem_engine.services.station import Context, Station

__all__ = ["list_adapters", "load_adapter", "unload_adapter", "wanted_adapter"]


async def load_adapter(
    station: Station, request: pb.LoadLoRAAdapterRequest, context: Context
) -> pb.LoadLoRAAdapterResponse:
    """Success=false with the reason when it cannot be loaded; INVALID_ARGUMENT when a required field is empty."""
    if station.life.is_dead:
        await station.dead(context)
    for name in ("lora_name", "lora_path", "lora_id"):
        if not getattr(request, name):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{name} is empty")
    message = ""
    try:
        await station.adapters.load(request.lora_id, request.lora_name, request.lora_path, is_pinned=request.pinned)
    except (AdapterError, ModelFolderError) as error:
        message = str(error)
    return pb.LoadLoRAAdapterResponse(success=not message, message=message, loaded_lora_ids=station.adapters.loaded)


async def unload_adapter(
    station: Station, request: pb.UnloadLoRAAdapterRequest, context: Context
) -> pb.UnloadLoRAAdapterResponse:
    """Success=false when it is not loaded. Requests that use it finish; new ones are refused from now on."""
    if station.life.is_dead:
        await station.dead(context)
    if not request.lora_name:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "lora_name is empty")
    message = ""
    try:
        station.adapters.unload(request.lora_id, request.lora_name)
    except AdapterError as error:
        message = str(error)
    return pb.UnloadLoRAAdapterResponse(success=not message, message=message, loaded_lora_ids=station.adapters.loaded)


def list_adapters(station: Station) -> pb.ListLoadedLoRAAdaptersResponse:
    return pb.ListLoadedLoRAAdaptersResponse(
        loaded_adapters=[
            pb.LoadedLoRAAdapter(
                lora_id=adapter.adapter_id, lora_name=adapter.name, lora_path=adapter.path, pinned=adapter.is_pinned
            )
            for adapter in station.adapters.loaded.values()
        ]
    )


async def wanted_adapter(station: Station, request: pb.GenerateRequest, context: Context) -> Adapter | None:
    """The adapter that `lora_id` names, None when it names none; INVALID_ARGUMENT for one that is not loaded.

    SGLang's own front end refuses an unknown adapter as a bad request; its servicer passes the id on unchecked.
    """
    if not request.lora_id:
        return None
    try:
        return station.adapters.get(request.lora_id)
    except AdapterError as error:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"lora_id: {error}")

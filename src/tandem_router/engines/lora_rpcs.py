"""SGLang's LoRA rpcs. Requests name an adapter by an id that whoever loads it mints.

The id is derived from name and path, so that a load which is repeated, or made by another router, makes the same one.
A worker's cache is keyed by it: whoever changes the files behind a path has to flush that cache too.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from smg_grpc_proto.generated import sglang_scheduler_pb2 as pb

from tandem_router.engines.common_rpcs import operated
from tandem_router.engines.contract import OperationRpc, Rpc
from tandem_router.engines.guards import sole_adapter
from tandem_router.errors import Code, Reason, TandemError
from tandem_router.model.adapters import LoadedAdapter
from tandem_router.model.failure import EngineFailure
from tandem_router.model.operations import ListAdapters, LoadAdapter, Operated, Operation, UnloadAdapter
from tandem_router.model.request import LegRequest
from tandem_router.model.worker import WorkerFacts

__all__ = ["lora_id_of", "lora_operations"]

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "adapters.tandem")
_SWITCHED_OFF = "lora is not enabled"
_FILES = (
    "no such file",
    "not a directory",
    "permission denied",
    "repo id must",
    "repository not found",
    "snapshot folder",
    "adapter_config.json",
    "tensor",
)
"""What engines write, lower-cased, of files that are not there or not an adapter of their model. SGLang hands on the
error of whatever it stumbled over: the system's for a folder without the file, the model hub's for a path that is no
folder, since it then takes it for a repository's name.
"""
_TAKEN = ("already exists", "already loaded", "loaded already")
"""The same of a name that another adapter has: SGLang, and the reference engine."""


def lora_operations(service: str) -> Mapping[type[Operation], OperationRpc]:
    """Load, unload and list. service: its full name."""
    return {
        LoadAdapter: OperationRpc(Rpc(f"/{service}/LoadLoRAAdapter", pb.LoadLoRAAdapterResponse), _load, _loaded),
        UnloadAdapter: OperationRpc(
            Rpc(f"/{service}/UnloadLoRAAdapter", pb.UnloadLoRAAdapterResponse), _unload, operated
        ),
        ListAdapters: OperationRpc(
            Rpc(f"/{service}/ListLoadedLoRAAdapters", pb.ListLoadedLoRAAdaptersResponse), _list, _listed
        ),
    }


def lora_id_of(leg: LegRequest, facts: WorkerFacts | None) -> str:
    """The engine's id of the adapter that the leg wants, "" for none.

    Raises RUNTIME_CANNOT_APPLY_ADAPTERS where the worker was started without LoRA, ADAPTER_NOT_FOUND where it has not
    loaded this one: both are a request's failure here and a scheduler's there.
    """
    adapter = sole_adapter(leg.adapters, "SGLang")
    if adapter is None:
        return ""
    if facts is None or not facts.applies_adapters:
        sentence = "the worker was started without LoRA"
        raise TandemError(Reason.RUNTIME_CANNOT_APPLY_ADAPTERS, sentence, field="adapters")
    loaded = next((one for one in facts.adapters if one.name == adapter.name), None)
    if loaded is None:
        sentence = f"the worker has no adapter {adapter.name!r}"
        raise TandemError(Reason.ADAPTER_NOT_FOUND, sentence, field="adapters[0].name")
    return loaded.engine_id or loaded.name


def _load(operation: LoadAdapter) -> pb.LoadLoRAAdapterRequest:
    return pb.LoadLoRAAdapterRequest(
        lora_name=operation.name,
        lora_path=operation.path,
        pinned=operation.is_pinned,
        lora_id=uuid.uuid5(_NAMESPACE, f"{operation.name}\n{operation.path}").hex,
    )


def _loaded(response: Any) -> Operated:
    """Raises EngineFailure: repeating a load that was refused changes nothing, unlike most that goes wrong."""
    if response.success:
        return operated(response)
    words = response.message or "it does not say why"
    told = words.lower()
    if _SWITCHED_OFF in told:
        sentence = f"the engine was started without LoRA: {words}"
        raise EngineFailure(Reason.RUNTIME_CANNOT_MANAGE_ADAPTERS, sentence, code=Code.OK)
    field = "name" if any(sign in told for sign in _TAKEN) else None
    if field is None and any(sign in told for sign in _FILES):
        field = "path"
    sentence = f"the engine did not load the adapter: {words}"
    raise EngineFailure(Reason.ADAPTER_NOT_LOADABLE, sentence, code=Code.OK, field=field)


def _unload(operation: UnloadAdapter) -> pb.UnloadLoRAAdapterRequest:
    return pb.UnloadLoRAAdapterRequest(lora_name=operation.name, lora_id=operation.engine_id)


def _list(operation: ListAdapters) -> pb.ListLoadedLoRAAdaptersRequest:
    return pb.ListLoadedLoRAAdaptersRequest()


def _listed(response: Any) -> Operated:
    return Operated(
        adapters=tuple(
            LoadedAdapter(one.lora_name, one.lora_id, one.lora_path, one.pinned) for one in response.loaded_adapters
        )
    )

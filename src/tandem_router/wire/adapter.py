"""Adapters between protobuf and model/: those that a request names, those to load, and those that are loaded."""

from __future__ import annotations

from collections.abc import Iterable

from tandem.v1 import adapter_pb2, adapter_service_pb2, generate_pb2
from tandem_router.model.adapters import AdapterUse, PlacedAdapter
from tandem_router.model.operations import LoadAdapter
from tandem_router.wire.checks import at_most, invalid, number, present, text

__all__ = ["adapter_name", "adapter_pb", "adapters_of", "load_of"]

MAX_ADAPTERS = 8
_MOST_PATH_BYTES = 2048


def adapter_name(path: str, value: str) -> str:
    """An adapter's name, 1 to 256 characters; raises INVALID_REQUEST."""
    return text(path, value, least=1, most=256)


def adapters_of(refs: Iterable[generate_pb2.AdapterRef], path: str = "adapters") -> tuple[AdapterUse, ...]:
    """The adapters that a request wants applied, in its order; raises INVALID_REQUEST, also for one named twice."""
    refs = tuple(refs)
    at_most(path, refs, MAX_ADAPTERS)
    uses: dict[str, AdapterUse] = {}
    for index, ref in enumerate(refs):
        name = adapter_name(f"{path}[{index}].name", ref.name)
        if name in uses:
            raise invalid(f"{path}[{index}].name", f'"{name[:64]}" is named twice.')
        uses[name] = AdapterUse(name, number(f"{path}[{index}].scale", ref.scale) if present(ref, "scale") else 1.0)
    return tuple(uses.values())


def load_of(message: adapter_service_pb2.LoadAdapterRequest) -> LoadAdapter:
    """What to load; raises INVALID_REQUEST."""
    path = text("path", message.path, least=1, most=_MOST_PATH_BYTES, in_bytes=True)
    return LoadAdapter(adapter_name("name", message.name), path, message.pinned)


def adapter_pb(adapter: PlacedAdapter) -> adapter_pb2.Adapter:
    """The message of an adapter and where it is."""
    return adapter_pb2.Adapter(
        name=adapter.name,
        placements=[
            adapter_pb2.AdapterPlacement(
                worker_id=worker_id, engine_id=loaded.engine_id, path=loaded.path, pinned=loaded.is_pinned
            )
            for worker_id, loaded in adapter.placements
        ],
    )

"""The adapters that an engine holds beside its model, by the id that requests select them with."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from tandem_engine.config import ModelConfig
from tandem_engine.lora import Adapter
from tandem_engine.lora_folder import load_adapter

__all__ = ["AdapterError", "AdapterShelf"]


class AdapterError(Exception):
    """An adapter was not loaded, unloaded or found; the text says why."""


class AdapterShelf:
    """At most `capacity` adapters, 0 meaning that LoRA is switched off. Lives on the event loop.

    Unloading only takes an adapter off the shelf: requests hold the adapter itself and finish with it.
    """

    def __init__(self, config: ModelConfig, capacity: int) -> None:
        self._config = config
        self.capacity = capacity
        self._loaded: dict[str, Adapter] = {}
        self._loading: set[tuple[str, str]] = set()

    @property
    def loaded(self) -> Mapping[str, Adapter]:
        """By id, in the order of loading."""
        return self._loaded

    def get(self, adapter_id: str) -> Adapter:
        """Raises AdapterError for an id that is not loaded."""
        if not self.capacity:
            raise AdapterError("LoRA is not enabled")
        adapter = self._loaded.get(adapter_id)
        if adapter is None:
            known = ", ".join(sorted(self._loaded)) or "none"
            raise AdapterError(f"adapter {adapter_id!r} is not loaded; loaded: {known}")
        return adapter

    async def load(self, adapter_id: str, name: str, path: str, *, is_pinned: bool) -> Adapter:
        """Reads a folder, in a thread. Raises AdapterError: taken id or name, no room; AdapterFolderError: the folder.

        Nothing is evicted to make room, pinned or not: which adapter goes is the caller's choice.
        """
        if not self.capacity:
            raise AdapterError("LoRA is not enabled")
        taken = [(adapter.adapter_id, adapter.name) for adapter in self._loaded.values()]
        for other_id, other_name in (*taken, *self._loading):
            if adapter_id == other_id:
                raise AdapterError(f"an adapter with lora_id {adapter_id!r} is loaded already")
            if name == other_name:
                raise AdapterError(f"an adapter with lora_name {name!r} is loaded already")
        if len(taken) + len(self._loading) >= self.capacity:
            raise AdapterError(f"{self.capacity} adapters are loaded, which is the most; unload one first")
        self._loading.add((adapter_id, name))
        try:
            adapter = await asyncio.to_thread(
                load_adapter, path, self._config, adapter_id=adapter_id, name=name, is_pinned=is_pinned
            )
        finally:
            self._loading.discard((adapter_id, name))
        self._loaded[adapter_id] = adapter
        return adapter

    def unload(self, adapter_id: str, name: str) -> Adapter:
        """Takes the adapter of this name away; `adapter_id` may be empty. Raises AdapterError when none fits both."""
        for adapter in self._loaded.values():
            if adapter.name == name and adapter_id in ("", adapter.adapter_id):
                return self._loaded.pop(adapter.adapter_id)
        raise AdapterError(f"no adapter {name!r} is loaded" + (f" under lora_id {adapter_id!r}" if adapter_id else ""))

"""Adapters of a scripted engine: which it holds, and what it says when it is asked for them by operations."""

from __future__ import annotations

from collections.abc import Iterable

from tandem_router.errors import Code, Reason
from tandem_router.model.adapters import LoadedAdapter
from tandem_router.model.failure import EngineFailure
from tandem_router.model.operations import (
    CANNOT,
    FlushCache,
    ListAdapters,
    LoadAdapter,
    Operated,
    Operation,
    UnloadAdapter,
)

__all__ = ["ScriptedAdapters"]


class ScriptedAdapters:
    """Those of one process; a new one begins with what it is started with."""

    def __init__(self, names: Iterable[str], *, is_managed: bool) -> None:
        """is_managed: whether it has the rpcs; else it can flush its cache and nothing else."""
        self._is_managed = is_managed
        self.loaded: dict[str, LoadedAdapter] = {}
        self._ever: dict[str, None] = {}
        for name in names:
            self.load(name)

    def load(self, name: str) -> None:
        """Have it, as from its command line."""
        self._ever[name] = None
        self.loaded[name] = LoadedAdapter(name, f"id-{name}", f"/adapters/{name}")

    def lacks(self, names: Iterable[str]) -> list[str]:
        """Those of the names that are not loaded."""
        return [name for name in names if name not in self.loaded]

    def never_had(self, names: Iterable[str]) -> list[str]:
        """Those of the names that this process never had: no news of it that is merely old can name them."""
        return [name for name in names if name not in self._ever]

    def operate(self, operation: Operation) -> Operated:
        """Do it; raises EngineFailure."""
        match operation:
            case FlushCache():
                return Operated("flushed")
            case ListAdapters() if self._is_managed:
                return Operated(adapters=tuple(self.loaded.values()))
            case LoadAdapter(name) if self._is_managed:
                if name in self.loaded:
                    raise EngineFailure(Reason.ENGINE_ERROR, f"{name} is loaded", code=Code.OK)
                self.load(name)
                return Operated("loaded")
            case UnloadAdapter(name) if self._is_managed:
                if self.loaded.pop(name, None) is None:
                    raise EngineFailure(Reason.ENGINE_ERROR, f"{name} is not loaded", code=Code.OK)
                return Operated("unloaded")
        raise EngineFailure(CANNOT[type(operation)], "it is a scripted engine", code=Code.UNIMPLEMENTED)

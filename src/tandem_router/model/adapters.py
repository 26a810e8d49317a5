"""Adapters (LoRA): those that a request names, and those that an engine holds."""

from __future__ import annotations

from dataclasses import dataclass

from tandem_router.model.ids import WorkerId

__all__ = ["AdapterUse", "LoadedAdapter", "PlacedAdapter"]


@dataclass(frozen=True, slots=True)
class AdapterUse:
    """An adapter that a request wants applied."""

    name: str
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class LoadedAdapter:
    """An adapter that an engine holds beside its model."""

    name: str
    engine_id: str = ""
    """The engine's own id of it, which its requests may want instead of the name; empty where it has none."""
    path: str = ""
    """Where the engine read it from, in its own words."""
    is_pinned: bool = False
    """It stays when the engine needs room for others."""


@dataclass(frozen=True, slots=True)
class PlacedAdapter:
    """One name, and where it is loaded."""

    name: str
    placements: tuple[tuple[WorkerId, LoadedAdapter], ...] = ()
    """In the order of the workers' registration."""

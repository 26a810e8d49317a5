"""What an operator can have one engine do, besides serving: each a value, so that one path carries them all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tandem_router.errors import Reason
from tandem_router.model.adapters import LoadedAdapter

__all__ = [
    "CANNOT",
    "FlushCache",
    "ListAdapters",
    "LoadAdapter",
    "Operated",
    "Operation",
    "StartProfile",
    "StopProfile",
    "UnloadAdapter",
]


@dataclass(frozen=True, slots=True)
class FlushCache:
    """Forget the KV that no running request uses."""

    wait_idle_s: float = 0.0
    """How long the engine may wait to become idle first."""


@dataclass(frozen=True, slots=True)
class StartProfile:
    """Start the engine's own profiler; None and empty are its defaults."""

    output_dir: str | None = None
    start_step: int | None = None
    num_steps: int | None = None
    activities: tuple[str, ...] = ()
    with_stack: bool | None = None
    record_shapes: bool | None = None
    by_stage: bool = False


@dataclass(frozen=True, slots=True)
class StopProfile:
    """Stop it and write its traces."""


@dataclass(frozen=True, slots=True)
class LoadAdapter:
    """Load an adapter from where the engine finds it."""

    name: str
    path: str
    is_pinned: bool = False


@dataclass(frozen=True, slots=True)
class UnloadAdapter:
    """Let an adapter go."""

    name: str
    engine_id: str = ""
    """The engine's own id of it, where one is known."""


@dataclass(frozen=True, slots=True)
class ListAdapters:
    """Say which adapters are loaded."""


Operation = FlushCache | StartProfile | StopProfile | LoadAdapter | UnloadAdapter | ListAdapters


@dataclass(frozen=True, slots=True)
class Operated:
    """The good answer to an operation; a bad one is raised as EngineFailure."""

    message: str = ""
    """The engine's own words."""
    adapters: tuple[LoadedAdapter, ...] = ()
    """Of ListAdapters."""


CANNOT: Mapping[type[Operation], Reason] = {
    FlushCache: Reason.RUNTIME_CANNOT_FLUSH_CACHE,
    StartProfile: Reason.RUNTIME_CANNOT_PROFILE,
    StopProfile: Reason.RUNTIME_CANNOT_PROFILE,
    LoadAdapter: Reason.RUNTIME_CANNOT_MANAGE_ADAPTERS,
    UnloadAdapter: Reason.RUNTIME_CANNOT_MANAGE_ADAPTERS,
    ListAdapters: Reason.RUNTIME_CANNOT_MANAGE_ADAPTERS,
}
"""Why an engine without the rpc, or one that answers UNIMPLEMENTED, does not do it."""

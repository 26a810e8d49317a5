"""Embed: what the protocols that have it share. Each states its own request."""

from __future__ import annotations

from typing import Any

from tandem_router.engines.guards import refuse_adapters
from tandem_router.errors import Code, Reason
from tandem_router.model.embedding import EmbedLeg, Vector
from tandem_router.model.failure import EngineFailure

__all__ = ["check_embed", "vector_of"]


def check_embed(leg: EmbedLeg, engine: str) -> None:
    """Raises RUNTIME_CANNOT_APPLY_ADAPTERS: no Embed has a field for one."""
    refuse_adapters(leg.adapters, f"{engine}'s Embed")


def vector_of(response: Any) -> Vector:
    """`embedding` and `prompt_tokens`; raises EngineFailure(ENGINE_PROTOCOL_ERROR) on an answer without a vector."""
    if not response.embedding:
        raise EngineFailure(
            Reason.ENGINE_PROTOCOL_ERROR, "the engine answered Embed without a vector", code=Code.INTERNAL
        )
    return Vector(tuple(response.embedding), response.prompt_tokens)

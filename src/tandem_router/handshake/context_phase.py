"""Context phase (TensorRT-LLM): a handshake that its published protocol only half carries, so there is none.

A GENERATION_ONLY request needs the context_phase_params that its CONTEXT_ONLY request ended with (first tokens, request
id, opaque state of the cache), and the published GenerateComplete has no field for them. Such workers serve aggregated;
a test watches the pinned protocol for the field to appear.
"""

from __future__ import annotations

from tandem_router.errors import Reason
from tandem_router.model.spec import RuntimeType

__all__ = ["why_not"]


def why_not(runtime_type: RuntimeType) -> tuple[Reason, str] | None:
    """The reason, and the end of a sentence that begins with the worker; None for protocols that it is not about."""
    if runtime_type is not RuntimeType.TRTLLM:
        return None
    return (
        Reason.RUNTIME_CANNOT_RETURN_CONTEXT_PARAMS,
        "returns no context-phase parameters over gRPC, so it can only serve aggregated; register it as REGULAR",
    )

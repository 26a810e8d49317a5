"""The dialects that this router speaks, in the fixed order in which an unknown worker is asked."""

from __future__ import annotations

from tandem_router.engines.contract import Dialect
from tandem_router.engines.mlx import MlxDialect
from tandem_router.engines.sglang import SglangDialect
from tandem_router.engines.tokenspeed import TokenspeedDialect
from tandem_router.engines.trtllm import TrtllmDialect
from tandem_router.engines.vllm import VllmDialect
from tandem_router.model.spec import RuntimeType

__all__ = ["PROBE_ORDER", "dialect_of"]

PROBE_ORDER: tuple[Dialect, ...] = (
    SglangDialect(),
    VllmDialect(),
    TrtllmDialect(),
    TokenspeedDialect(),
    MlxDialect(),
)


def dialect_of(runtime_type: RuntimeType) -> Dialect | None:
    """The dialect of a runtime, or None while this router does not speak it."""
    return next((dialect for dialect in PROBE_ORDER if dialect.runtime_type is runtime_type), None)

"""The trace of a detection: which protocol a worker was asked in, what it answered, and how long that took."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tandem_router.model.spec import RuntimeType

__all__ = ["Asked", "OnAsked", "told"]


@dataclass(frozen=True, slots=True)
class Asked:
    """One question of a detection."""

    runtime_type: RuntimeType
    answer: str
    """Name of the status: OK where it was this protocol."""
    took_s: float


OnAsked = Callable[[Asked], None]
"""Told of each question in its turn, also when the detection fails."""


def told(trace: Sequence[Asked]) -> str:
    """A trace for people, for example "SGLANG: UNIMPLEMENTED (2 ms), VLLM: OK (3 ms)"."""
    return ", ".join(f"{asked.runtime_type}: {asked.answer} ({asked.took_s * 1000:.0f} ms)" for asked in trace)

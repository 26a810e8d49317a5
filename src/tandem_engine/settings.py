"""The engine's sizes, in one frozen value."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["EngineSettings"]


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Sizes are per data-parallel rank.

    `max_running` counts choices that hold a slot (computing, running, or awaiting KV). `prefill_chunk` bounds the
    prompt tokens of one step. `max_model_len` None means what the model and the pages allow. `kv_lease_s` is how long a
    prefill's pages wait for their reader (vLLM holds unused NIXL blocks 30 s). `corrupt_on_abort` imitates engines that
    free a decode's landing pages while the writer goes on writing. `kv_event_history` is how many KV events are kept.
    """

    num_pages: int = 1024
    page_size: int = 16
    max_running: int = 64
    prefill_chunk: int = 256
    max_model_len: int | None = None
    dp_size: int = 1
    kv_lease_s: float = 30.0
    corrupt_on_abort: bool = False
    kv_event_history: int = 8192

    def __post_init__(self) -> None:
        for name in ("num_pages", "page_size", "max_running", "prefill_chunk", "dp_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.kv_lease_s <= 0:
            raise ValueError(f"kv_lease_s must be positive, got {self.kv_lease_s}")
        if self.max_model_len is not None and self.max_model_len < 2:
            raise ValueError(f"max_model_len must be at least 2, got {self.max_model_len}")

    def context(self, max_position: int) -> int:
        """Most tokens of prompt and output together, for a model with `max_position` positions."""
        most = min(max_position, self.num_pages * self.page_size)
        return most if self.max_model_len is None else min(most, self.max_model_len)

"""What an engine says of its KV cache as it changes: blocks stored, removed, or all cleared."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["KvBatch", "KvBlock", "KvCleared", "KvEvent", "KvRemoved", "KvStored"]


@dataclass(frozen=True, slots=True)
class KvBlock:
    """One block of tokens under the engine's own hash of it and all before it."""

    block_hash: int
    """int64 as the engine sent it; only equal or not equal."""
    token_ids: tuple[int, ...]
    block_size: int
    """Tokens per block."""


@dataclass(frozen=True, slots=True)
class KvStored:
    """Blocks that can be reused from now on, each the child of the one before it."""

    blocks: tuple[KvBlock, ...]
    parent_hash: int | None = None
    """Block before the first one; None = they begin a prompt."""
    adapter: str | None = None
    cache_salt: str | None = None
    is_on_device: bool = True
    """False: in host memory, on disk or in a shared pool."""


@dataclass(frozen=True, slots=True)
class KvRemoved:
    """Blocks that are gone."""

    block_hashes: tuple[int, ...]
    is_on_device: bool = True


@dataclass(frozen=True, slots=True)
class KvCleared:
    """All blocks are gone."""


KvEvent = KvStored | KvRemoved | KvCleared


@dataclass(frozen=True, slots=True)
class KvBatch:
    """One message of the stream."""

    sequence: int
    """Rises by one from batch to batch that has events; one without events repeats the last (vLLM while busy)."""
    events: tuple[KvEvent, ...]
    dp_rank: int | None = None
    is_snapshot: bool = False
    """One chunk of the whole state, to be applied after all that was known was dropped (chunk 0 says so itself)."""

"""The paged KV cache of one rank: who owns which page, and which full blocks can be used again.

A page is in exactly one of three states:

    free  --allocate-->  referenced (count >= 1)  --last release, unpublished-->  free
    referenced  --last release, published-->  cached (count 0)  --reserve hit-->  referenced
    cached  --evicted or cleared-->  free

Becoming free overwrites the page with NaN at once, so a stale read shows in the logits instead of looking plausible.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tandem_engine.kv_events import KvEventKind, KvEventLog
from tandem_engine.tiles import Floats

__all__ = ["Block", "PageLayout", "PagedKvCache", "PagesError"]


class PagesError(RuntimeError):
    """A page was used against its state; always a bug of the caller."""


@dataclass(frozen=True, slots=True)
class PageLayout:
    """The shape of one page: [layers, 2 (key, value), kv_heads, page_size, head_dim] of float32."""

    layers: int
    kv_heads: int
    page_size: int
    head_dim: int

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        return (self.layers, 2, self.kv_heads, self.page_size, self.head_dim)

    @property
    def page_bytes(self) -> int:
        return 4 * int(np.prod(self.shape))


@dataclass(frozen=True, slots=True)
class Block:
    """A full block's name and contents. `parent` is the block before it, or the root hash with `is_first`."""

    block_hash: int
    parent: int
    token_ids: tuple[int, ...]
    is_first: bool
    adapter: str | None = None


class PagedKvCache:
    """Pages, their reference counts and the prefix cache. Lives on the event loop; only `data` is used by a step."""

    def __init__(self, layout: PageLayout, num_pages: int, events: KvEventLog | None = None) -> None:
        self.layout = layout
        self.num_pages = num_pages
        self.events = events if events is not None else KvEventLog()
        self.data: Floats = np.full((num_pages, *layout.shape), np.nan, dtype=np.float32)
        self._references = [0] * num_pages
        self._free = list(range(num_pages - 1, -1, -1))
        self._by_hash: dict[int, int] = {}
        self._blocks: dict[int, Block] = {}
        # Cached pages nobody references, least recently used first.
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def free_pages(self) -> int:
        return len(self._free)

    @property
    def cached_pages(self) -> int:
        """Pages that hold a reusable block and that nobody references."""
        return len(self._idle)

    @property
    def referenced_pages(self) -> int:
        return self.num_pages - len(self._free) - len(self._idle)

    def references(self, page: int) -> int:
        return self._references[page]

    def match(self, hashes: Sequence[int]) -> tuple[int, ...]:
        """Pages of the longest cached run of `hashes` from the first on. References nothing."""
        pages = []
        for block_hash in hashes:
            page = self._by_hash.get(block_hash)
            if page is None:
                break
            pages.append(page)
        return tuple(pages)

    def reserve(self, hits: Sequence[int], fresh: int) -> tuple[int, ...] | None:
        """Reference `hits` (of `match`) and `fresh` new pages, which are returned; None and no change when short."""
        idle_hits = sum(1 for page in hits if self._references[page] == 0)
        if fresh > len(self._free) + len(self._idle) - idle_hits:
            return None
        for page in hits:
            self._references[page] += 1
            self._idle.pop(page, None)
        evicted = []
        while len(self._free) < fresh:
            page, _ = self._idle.popitem(last=False)
            evicted.append(self._forget(page))
        if evicted:
            self.events.record(KvEventKind.REMOVED, block_hashes=tuple(evicted))
        pages = tuple(self._free.pop() for _ in range(fresh))
        for page in pages:
            self._references[page] = 1
        return pages

    def release(self, pages: Sequence[int]) -> None:
        """Drop one reference of each. The last page becomes evictable first: a chain is useless without its head."""
        for page in reversed(pages):
            if self._references[page] <= 0:
                raise PagesError(f"page {page} is released but nobody references it")
            self._references[page] -= 1
            if self._references[page] == 0:
                if page in self._blocks:
                    self._idle[page] = None
                else:
                    self._set_free(page)

    def publish(self, page: int, block: Block) -> bool:
        """Offer a referenced, full page for reuse. False when an equal block is cached already: that one stays."""
        if self._references[page] <= 0:
            raise PagesError(f"page {page} is published but nobody references it")
        if block.block_hash in self._by_hash or page in self._blocks:
            return False
        self._by_hash[block.block_hash] = page
        self._blocks[page] = block
        self.events.record(
            KvEventKind.STORED,
            block_hashes=(block.block_hash,),
            parent_hash=None if block.is_first else block.parent,
            token_ids=block.token_ids,
            block_size=self.layout.page_size,
            adapter=block.adapter,
        )
        return True

    def clear(self) -> int:
        """Forget every cached block; pages in use stay in use, but unpublished. Returns the number of pages freed."""
        idle = list(self._idle)
        self._idle.clear()
        self._by_hash.clear()
        self._blocks.clear()
        for page in idle:
            self._set_free(page)
        self.events.record(KvEventKind.CLEARED)
        return len(idle)

    def copy_page(self, source: int, target: int) -> None:
        self.data[target] = self.data[source]

    def read_page(self, page: int) -> bytes:
        """The page's `layout.page_bytes` bytes, little-endian float32 in layout order."""
        self._check_index(page)
        data: bytes = self.data[page].astype("<f4", copy=False).tobytes()
        return data

    def write_page(self, page: int, data: bytes) -> None:
        """Replace the page's contents. Raises PagesError for a wrong size. Ownership is the caller's matter."""
        self._check_index(page)
        if len(data) != self.layout.page_bytes:
            raise PagesError(f"a page has {self.layout.page_bytes} bytes, got {len(data)}")
        self.data[page] = np.frombuffer(data, dtype="<f4").reshape(self.layout.shape)

    def _check_index(self, page: int) -> None:
        if not 0 <= page < self.num_pages:
            raise PagesError(f"page {page} does not exist; there are {self.num_pages}")

    def _forget(self, page: int) -> int:
        block = self._blocks.pop(page)
        del self._by_hash[block.block_hash]
        self._set_free(page)
        return block.block_hash

    def _set_free(self, page: int) -> None:
        self.data[page] = np.nan
        self._free.append(page)

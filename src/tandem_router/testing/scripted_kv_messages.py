"""What a scripted decode and a scripted prefill say to each other about KV pages."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Fetch", "Fetched", "Knock", "KvFailed", "Page", "PagesDone", "Pull", "Release"]


@dataclass(frozen=True, slots=True)
class Knock:
    """Decode to prefill: my memory is ready, write into it."""

    room: int


@dataclass(frozen=True, slots=True)
class Pull:
    """Decode to prefill: send me the pages of that handle."""

    handle: str


@dataclass(frozen=True, slots=True)
class Release:
    """Decode to prefill: free that handle."""

    handle: str


@dataclass(frozen=True, slots=True)
class Fetch:
    """Decode to prefill: write the pages of that transfer into my memory (Mooncake)."""

    transfer_id: str
    engine_id: str
    """Of the rank that is to have it."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """Decode to prefill: all pages are here."""


@dataclass(frozen=True, slots=True)
class Page:
    """Prefill to decode: the content of one page."""

    index: int
    content: bytes


@dataclass(frozen=True, slots=True)
class PagesDone:
    """Prefill to decode: that was the last page."""


@dataclass(frozen=True, slots=True)
class KvFailed:
    """Prefill to decode: there will be no more."""

    why: str

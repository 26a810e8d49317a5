"""Names for full KV blocks: a block's hash covers its tokens and everything before them."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

__all__ = ["chain", "extend", "root_hash"]


def root_hash(adapter: str | None, cache_salt: str | None) -> int:
    """The parent of a first block. Requests with another adapter or salt share nothing."""
    parts = b"".join(b"\x00" if text is None else b"\x01" + _framed(text.encode()) for text in (adapter, cache_salt))
    return _digest(b"root" + parts)


def extend(parent: int, tokens: Sequence[int]) -> int:
    """The hash of the block holding `tokens` after `parent`: signed 64 bits, what engines' KV events carry."""
    return _digest(struct.pack(f"<q{len(tokens)}I", parent, *tokens))


def chain(root: int, token_ids: Sequence[int], page_size: int) -> tuple[int, ...]:
    """Hashes of the full blocks of `token_ids`, in order; an unfinished last block has none."""
    hashes = []
    parent = root
    for end in range(page_size, len(token_ids) + 1, page_size):
        parent = extend(parent, token_ids[end - page_size : end])
        hashes.append(parent)
    return tuple(hashes)


def _framed(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


def _digest(data: bytes) -> int:
    (value,) = struct.unpack("<q", hashlib.blake2b(data, digest_size=8).digest())
    return int(value)

"""Pages of a list: a token names the last item given out, so what comes and goes elsewhere does not shift the rest."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Sequence
from typing import TypeVar

from google.protobuf.message import Message

from tandem_router.wire.checks import invalid

__all__ = ["page"]

Item = TypeVar("Item")

DEFAULT_SIZE = 100
MOST = 1000


def page(
    items: Sequence[Item], key: Callable[[Item], str], *, size: int, token: str, filters: Message
) -> tuple[Sequence[Item], str]:
    """The items after the token's one, at most `size` (default 100, at most 1,000), and the next page's token or "".

    items: in the list's stable order. key: unique; an item's place in the order never changes. filters: what the
    request asked for besides its page; a token of other filters is refused (INVALID_REQUEST "page_token").
    """
    digest = hashlib.sha256(filters.SerializeToString(deterministic=True)).hexdigest()[:8]
    start = 0
    if token:
        last = _last_of(token, digest)
        keys = [key(item) for item in items]
        if last not in keys:
            raise invalid("page_token", "The item where the page began is gone; begin again without a token.")
        start = keys.index(last) + 1
    if size > MOST:
        raise invalid("page_size", f"It is {size} and must be at most {MOST}.")
    rest = items[start:]
    chosen = rest[: size or DEFAULT_SIZE]
    if len(chosen) == len(rest):
        return chosen, ""
    return chosen, base64.urlsafe_b64encode(f"{digest} {key(chosen[-1])}".encode()).decode()


def _last_of(token: str, digest: str) -> str:
    try:
        stated, _, last = base64.urlsafe_b64decode(token.encode()).decode().partition(" ")
    except (binascii.Error, UnicodeError):
        stated, last = "", ""
    if stated != digest or not last:
        raise invalid("page_token", "It is not a token of this list with this filter.")
    return last
